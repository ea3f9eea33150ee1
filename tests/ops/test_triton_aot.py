# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels as its compiler makes them for GPUs that need not be there."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from built import ROOT, cuobjdump, kernels

import tdc_kernels.ops

OPS = sorted(p.parent.name for p in Path(tdc_kernels.ops.__file__).parent.glob("*/triton.py"))
SHARED = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}  # what a block may have
HALF = {"*bf16", "*fp16"}  # nothing but features is stored so

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no triton"),
    pytest.mark.skipif(cuobjdump() is None, reason="no cuobjdump"),
]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """One process for all; Triton keeps what it has compiled in build/."""
    output = tmp_path_factory.mktemp("triton")
    env = {k: v for k, v in os.environ.items() if not k.startswith("TRITON_")}
    env["TRITON_CACHE_DIR"] = str(ROOT / "build" / "triton")
    # This tree's kernels, whatever is installed.
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), env.get("PYTHONPATH", "")])
    command = [sys.executable, str(Path(__file__).with_name("compile_triton.py")), str(output)]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((output / "kernels.json").read_text())
    for kernel in found:
        (usage,) = kernels(output / kernel["cubin"])
        kernel["memory"] = usage.stack + usage.local
    return found


@pytest.fixture(params=OPS)
def of_op(request, compiled):
    found = [kernel for kernel in compiled if kernel["op"] == request.param]
    assert {kernel["capability"] for kernel in found} == set(SHARED)
    return found


def test_nothing_spills(of_op):
    assert not [kernel for kernel in of_op if kernel["memory"]]


def test_shared_memory_is_there(of_op):
    assert not [kernel for kernel in of_op if kernel["shared"] > SHARED[kernel["capability"]]]


def test_loads_are_wide(of_op):
    """16 bytes at once wherever features are read."""
    reading = [
        k for k in of_op if "features" in k["signature"] or HALF & {*k["signature"].values()}
    ]
    if not reading:
        pytest.skip("reads no features")
    assert not [kernel for kernel in reading if not kernel["wide"]]

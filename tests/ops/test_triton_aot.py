# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels as its compiler makes them for GPUs that need not be there."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import built
import pytest
from built import ROOT, cached, cuobjdump

OPS = sorted(p.parent.name for p in (ROOT / "tdc_kernels" / "ops").glob("*/triton.py"))
TRITON = importlib.util.find_spec("triton")
COMPILES = Path(__file__).with_name("compile_triton.py")
SHARED = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}  # what a block may have
HALF = {"*bf16", "*fp16"}  # nothing but features is stored so

pytestmark = [
    pytest.mark.skipif(TRITON is None, reason="no triton"),
    pytest.mark.skipif(cuobjdump() is None, reason="no cuobjdump"),
]


@functools.cache
def compiled(extent: str) -> list[dict[str, Any]]:
    """What one process says of the kernels of all ops; kept until something of it changes."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("TRITON_")}
    env["TRITON_CACHE_DIR"] = str(ROOT / "build" / "triton")
    # This tree's kernels, whatever is installed.
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), env.get("PYTHONPATH", "")])
    sources = sorted((ROOT / "tdc_kernels").rglob("*.py"))
    inputs = [COMPILES, Path(built.__file__), Path(TRITON.origin), *sources]  # with its version
    found = cached(
        "triton",
        f"{extent}.json",
        inputs,
        lambda out: [sys.executable, str(COMPILES), extent, out],
        env,
    )
    return json.loads(found.read_text())


EXTENTS = [
    pytest.param(("one", {90}), id="one"),  # an instance per op: does the compiler take it at all?
    pytest.param(("all", set(SHARED)), id="all", marks=pytest.mark.slow),
]


@pytest.fixture(params=EXTENTS)
def extent(request):
    return request.param


@pytest.fixture(params=OPS)
def of_op(request, extent):
    name, capabilities = extent
    found = [kernel for kernel in compiled(name) if kernel["op"] == request.param]
    assert {kernel["capability"] for kernel in found} == capabilities
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

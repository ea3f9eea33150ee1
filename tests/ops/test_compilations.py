# SPDX-License-Identifier: Apache-2.0
"""Triton compiles a kernel anew for every launch that it tells apart: by lengths it must not, or a
server would compile for minutes."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

COUNTS = Path(__file__).with_name("count_compilations.py")
ROOT = COUNTS.parents[2]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no triton")
def test_one_launch_for_all_lengths(tmp_path):
    env = {k: v for k, v in os.environ.items() if not k.startswith("TRITON_")}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), env.get("PYTHONPATH", "")])
    out = tmp_path / "counts.json"
    subprocess.run([sys.executable, str(COUNTS), str(out)], check=True, env=env)
    counts = json.loads(out.read_text())
    assert len(counts) > 90  # kernels, dtypes and widths
    assert {name: count for name, count in counts.items() if count != 1} == {}

# SPDX-License-Identifier: Apache-2.0
"""Every example runs as it stands, and what it prints is true."""

from __future__ import annotations

import re
import runpy
import warnings
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def said(capsys, monkeypatch):
    """What the example prints, without network; run in this process, which has imported it all."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run(name: str) -> str:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def number(pattern: str, text: str) -> float:
    match = re.search(pattern, text)
    assert match, text
    return float(match[1])


def test_no_example_is_missing_here():
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert names and names <= tested
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text().splitlines()) < 40, path


def test_blip2(said):
    out = said("blip2.py")
    assert "replaced by tdc_kernels.cross_attention: 2" in out
    assert "same tokens: True" in out
    assert "undone: True" in out


@pytest.mark.slow
def test_instructblip_video(said):
    out = said("instructblip_video.py")
    assert "replaced by tdc_kernels.cross_attention: 6" in out
    assert "fell back" not in out
    assert 0 < number(r"largest difference: (\S+)", out) < 1e-4
    assert number(r": (\S+)x\n", out) > 0.5  # how fast is a question for bench/, not for a test


def test_lavis_qformer(said):
    out = said("lavis_qformer.py")
    assert "replaced by tdc_kernels.cross_attention: 1" in out
    assert re.search(r"calls that fell back: 1\n.* dropout is active", out)
    assert 0 < number(r"largest difference: (\S+)", out) < 1e-5


def test_longvu_reduction(said):
    out = said("longvu_reduction.py")
    assert "motion: 16 of 16" in out
    assert number(r"still part: (\d+) of 48", out) < 24
    assert number(r"before only: (\d+) of 64", out) < 40
    assert "DINOv2 [16, 144, 384], SigLIP [16, 144, 1152]" in out


def test_own_qformer(said):
    out = said("own_qformer.py")
    assert "-> [6, 8, 64]" in out
    assert number(r"-> (\S+) in 20 steps", out) < number(r"loss (\S+) ->", out) / 2

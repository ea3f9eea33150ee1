# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: RUF001 (typographic signs in the tables)
"""``summary.md`` out of made-up results: nothing appears that is not in them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from bench import kernels
from bench.gpu import summary as gpu_summary
from bench.gpu.steps import Outcome
from bench.report import results


def row(op: str, provider: str, ms: float, share: float = 0.5, **other: str) -> dict[str, Any]:
    return {
        **{"op": op, "case": "paper", "dtype": "bfloat16", "direction": "forward"},
        **{"provider": provider, "median_ms": ms, "share": share, "gpu": "A GPU"},
        **{"automatic": "yes" if provider == "cuda" else "", "note": ""},
        **{"read_gb_s": "3000", "copy_gb_s": "2900", **other},
    }


def lines(text: str, start: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(start)]


def test_targets_are_reached_missed_or_not_measured(tmp_path: Path) -> None:
    mine = [row("frame_similarity", "cuda", 2.0, 0.95), row("frame_similarity", "eager", 15.0)]
    mine += [row("frame_similarity", "compile", 9.0), row("frame_similarity", "release", 90.0)]
    mine += [row("frame_similarity", kernels.AUTOTUNED, 3.0)]
    results.replace(tmp_path / "a-gpu.csv", "frame_similarity", mine)
    counted = {"first": {"launches": {"pack_context paper-bfloat16-forward": 2}}}
    results.write(tmp_path / results.PROGRESS, json.dumps(counted))
    record = {"part": "first token, from decoded frames", "dtype": "bfloat16"}
    results.record("pipeline paper", [record | {"ratios": {"release": 1.49}, **FACTS}], tmp_path)
    text = gpu_summary.write(tmp_path, "A GPU.", [], rehearsal=False).read_text()
    found = {tuple(c.strip() for c in line.split("|")[2:5]) for line in lines(text, "| ")}
    assert ("≥ 90 % of the measured read bandwidth", "not measured", "95% (reached)") in found
    assert ("≥ 8× eager", "not measured", "7.5× (missed)") in found
    # the faster of the two modes of the compiler
    assert ("≥ 1.5× torch.compile", "not measured", "1.5× (reached)") in found
    assert ("≥ 10× the authors' way", "not measured", "not measured") in found
    assert ("one launch", "not measured", "2 (missed)") in found
    words = "first token from decoded frames ≥ 1.5× the authors' way"
    assert (words, "not measured", "1.49× (missed)") in found


FACTS: dict[str, Any] = {
    **{"frames": 224, "prompt_tokens": 8000, "parameters": 9.5e9, "prompt_error": 0.01},
    **{"logit_error": 0.02, "cuts_that_differ": 0, "times": {}},
}


def test_the_floor_stands_beside_the_time(tmp_path: Path) -> None:
    mine = [row("pack_context", "cuda", 2.0, 0.8), row("pack_context", "eager", 5.0, 0.3)]
    mine += [row("pack_context", "cuda", 3.0, case="ragged")]  # for the longer table
    results.replace(tmp_path / "a-gpu.csv", "pack_context", mine)
    text = gpu_summary.write(tmp_path, "A GPU.", [], rehearsal=False).read_text()
    (line,) = lines(text.split("## Kernels")[1], "| `pack_context`")
    cells = [cell.strip() for cell in line.split("|")[5:9]]
    assert cells == ["1.6", "2", "1.25", "cuda"]
    assert line.rstrip(" |").endswith("| 2.5 |  | 2.5 | eager")
    assert len(lines((tmp_path / gpu_summary.EVERY).read_text(), "| `pack_context`")) == 2


def test_the_order_is_that_of_importance(tmp_path: Path) -> None:
    results.replace(tmp_path / "a-gpu.csv", "pack_context", [row("pack_context", "cuda", 2.0)])
    times = {"ours": {"median_s": 1.0}, "release": {"median_s": 40.0}}
    whole = {"part": "segmentation and compression", "dtype": "bfloat16", "times": times}
    ratios = {"ratios": {"release": 40.0}}
    results.record("compressor whole 224", [whole | ratios], tmp_path)
    stages = {"stages_s": {"DINOv2": 1.0}, "decoding_tokens_per_s": 40.0, "peak_mb": 30_000}
    stages |= {"peak_is": "allocated", "dtype": "bfloat16", "first_token_s": 1.0, **FACTS}
    stages.pop("times")
    rows = [stages | {"part": f"stages, {way}", "notes": {}} for way in ("ours", "release")]
    results.record("pipeline paper", rows, tmp_path)
    late = Outcome("tests", "timed out", 9.0, "too long", ("logs/tests.log",), True)
    text = gpu_summary.write(tmp_path, "A GPU.", [late], rehearsal=False).read_text()
    places = [text.index(w) for w in ("tests: timed out", "## Targets", "## Pipeline")]
    places += [text.index(w) for w in ("## Compressor", "## Kernels", "## Steps")]
    assert places == sorted(places)
    rehearsed = gpu_summary.write(tmp_path, "A CPU.", [late], rehearsal=True).read_text()
    assert "reached" not in rehearsed and "40" in rehearsed.split("## Compressor")[1]
    assert "40× (reached)" in text and "| … DINOv2 | 1.000 | 1.000 | 1 |" in text
    assert not re.search(r"\bnan\b|\binf\b|None", text)

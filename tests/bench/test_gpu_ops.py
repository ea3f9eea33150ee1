# SPDX-License-Identifier: Apache-2.0
"""The ops on a borrowed GPU, case by case, and what compute-sanitizer watches; run on the CPU."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import gpu_ops
from bench.gpu import sanitize
from bench.gpu import summary as gpu_summary
from bench.report import results
from bench.timing import ceilings
from bench.timing import turns as harness
from tdc_kernels import registry

ROOT = Path(__file__).parents[2]


def options(out: Path, **changes: Any) -> argparse.Namespace:
    usual = {"out": out, "device": "cpu", "seconds": 60.0, "budget": 0.0, "start": 0}
    flags = {"first": True, "autotune": False, "ceilings_only": False, "tiny": True}
    return argparse.Namespace(**{**usual, **flags, **changes})


@pytest.fixture
def one_op(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cases of an op that takes milliseconds, and no compiler."""
    found = [b for b in sanitize.benchmarks() if b.op == "scene_boundaries"]
    monkeypatch.setattr(sanitize, "benchmarks", lambda: found)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(harness, "load_of_others", lambda: 0.0)


def test_the_most_wanted_cases_come_first() -> None:
    first = gpu_ops.plan(True)
    assert {c.name for _, c in first} == {"paper"} and not any(c.backward for _, c in first)
    assert [b.op for b, _ in first[:4]] == list(gpu_ops.ORDER[:4])
    assert {c.dtype for _, c in first[:4]} == {torch.bfloat16}
    every = [(b.op, str(c)) for b, c in gpu_ops.plan(False)]
    assert len(every) == sum(len(b.cases) for b in sanitize.benchmarks()) == len(set(every))


def test_a_case_is_written_as_soon_as_it_is_measured(
    tmp_path: Path, one_op: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gpu_ops.run(options(tmp_path, first=False)) == 0
    path = tmp_path / f"{harness.machine()}.csv"
    before = results.read(path)
    assert {row["case"] for row in before} == {"paper", "small", "ragged", "long"}
    assert "compile" in {r["provider"] for r in before} and gpu_ops.AUTOTUNED not in {
        r["provider"] for r in before
    }
    # Again with one provider more: the case is replaced, the others stay, the ceilings too.
    monkeypatch.setattr(ceilings, "measure", lambda *_, **__: pytest.fail("measured again"))
    assert gpu_ops.run(options(tmp_path, autotune=True)) == 0
    after = results.read(path)
    assert len(after) == len(before) + 1
    assert gpu_ops.AUTOTUNED in {r["provider"] for r in after if r["case"] == "paper"}


def test_cases_without_time_are_named(tmp_path: Path, one_op: None) -> None:
    assert gpu_ops.run(options(tmp_path, seconds=0.0)) == 0
    noted = json.loads((tmp_path / gpu_ops.PROGRESS).read_text())
    assert noted == {"first": {"not_reached": ["scene_boundaries paper-float32-forward"]}}
    assert gpu_summary.read(tmp_path).not_reached == noted["first"]["not_reached"]


def test_a_failing_case_leaves_the_others(
    tmp_path: Path, one_op: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = gpu_ops.measure

    def failing(benchmark: Any, case: Any, *args: Any) -> Any:
        if case.name == "small":
            raise RuntimeError("an illegal memory access\nand more")
        return measure(benchmark, case, *args)

    monkeypatch.setattr(gpu_ops, "measure", failing)
    assert gpu_ops.run(options(tmp_path, first=False)) == 1
    found = gpu_summary.read(tmp_path)
    assert found.failed == {"scene_boundaries small-float32-forward": "an illegal memory access"}
    assert {row["case"] for row in found.rows} == {"paper", "ragged", "long"}


# ---------------------------------------------------------------- the sanitizer's program


def test_every_op_runs_forward_and_backward(capsys: pytest.CaptureFixture[str]) -> None:
    assert sanitize.main(["--device", "cpu", "--backend", "reference"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines} == set(registry.ops())
    for what in ("ragged-float16-forward", "paper-bfloat16-forward", "width 37"):
        assert any(what in line for line in lines)


def test_nan_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    (op,) = (b for b in sanitize.benchmarks() if b.op == "pack_context")
    case = next(iter(sanitize.cases(op)))
    broken = replace(op, ours=lambda *args, backend: op.ours(*args, backend=backend) * float("nan"))
    with pytest.raises(RuntimeError, match="pack_context paper-float32-forward: NaN"):
        sanitize.run(broken, case, "cpu", "reference")
    assert sanitize.run(op, case, "cpu", "reference") is None


def test_a_backend_that_ran_nothing_is_an_error() -> None:
    """In a process of its own: the tests of the ops give this one CUDA kernels for the CPU."""
    command = [sys.executable, "-m", "bench.gpu.sanitize", "--device", "cpu", "--backend", "cuda"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "cuda ran nothing" in done.stderr, done.stderr

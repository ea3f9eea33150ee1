# SPDX-License-Identifier: Apache-2.0
"""The ops on a borrowed GPU, case by case, and what compute-sanitizer watches; run on the CPU."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import kernels
from bench.benchmark import ops
from bench.gpu import sanitize
from bench.gpu import summary as gpu_summary
from bench.report import results
from bench.timing import ceilings, machine
from tdc_kernels import registry


def options(out: Path, **changes: Any) -> argparse.Namespace:
    usual = {"out": out, "device": "cpu", "seconds": 60.0, "budget": 0.0, "start": 0}
    flags = {"first": True, "autotune": False, "ceilings_only": False, "tiny": True}
    flags |= {"untested": False, "dry_run": False}
    usual |= {"k": "", "rounds": 5, "ops": ["scene_boundaries"]}
    return argparse.Namespace(**{**usual, **flags, **changes})


def go(out: Path, **changes: Any) -> int:
    return kernels.CaseByCase(kernels.BENCHMARK, options(out, **changes)).go()


def test_the_most_wanted_cases_come_first() -> None:
    first = kernels.plan(ops(), True)
    assert {c.name for _, c in first} == {"paper"} and not any(c.backward for _, c in first)
    assert [op.name for op, _ in first[:4]] == list(kernels.ORDER[:4])
    assert {c.dtype for _, c in first[:4]} == {torch.bfloat16}
    every = [(op.name, str(c)) for op, c in kernels.plan(ops(), False)]
    assert len(every) == sum(len(op.cases) for op in ops()) == len(set(every))


def test_a_case_is_written_as_soon_as_it_is_measured(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert go(tmp_path, first=False) == 0
    path = tmp_path / f"{machine.machine()}.csv"
    before = results.read(path)
    assert {row["case"] for row in before} == {"paper", "small", "ragged", "long"}
    assert "compile" in {r["provider"] for r in before} and kernels.AUTOTUNED not in {
        r["provider"] for r in before
    }
    # Again with one provider more: the case is replaced, the others stay, the ceilings too.
    monkeypatch.setattr(ceilings, "measure", lambda *_, **__: pytest.fail("measured again"))
    assert go(tmp_path, autotune=True) == 0
    after = results.read(path)
    assert len(after) == len(before) + 1
    assert kernels.AUTOTUNED in {r["provider"] for r in after if r["case"] == "paper"}


def test_cases_without_time_are_named(tmp_path: Path, quick: None) -> None:
    assert go(tmp_path, seconds=0.0) == 0
    noted = json.loads((tmp_path / results.PROGRESS).read_text())
    assert noted == {"first": {"not_reached": ["scene_boundaries paper-float32-forward"]}}
    assert gpu_summary.read(tmp_path).not_reached == noted["first"]["not_reached"]


def test_a_failing_case_leaves_the_others(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = kernels.providers.prepare

    def failing(op: Any, case: Any, *args: Any) -> Any:
        if case.name == "small":
            raise RuntimeError("an illegal memory access\nand more")
        return prepare(op, case, *args)

    monkeypatch.setattr(kernels.providers, "prepare", failing)
    assert go(tmp_path, first=False) == 1
    found = gpu_summary.read(tmp_path)
    assert found.failed == {"scene_boundaries small-float32-forward": "an illegal memory access"}
    assert {key[1] for key in found.groups} == {"paper", "ragged", "long"}


# ---------------------------------------------------------------- the sanitizer's program


def test_every_op_runs_forward_and_backward(capsys: pytest.CaptureFixture[str]) -> None:
    assert sanitize.main(["--device", "cpu", "--backend", "reference"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines} == set(registry.ops())
    for what in ("ragged-float16-forward", "paper-bfloat16-forward", "width 37"):
        assert any(what in line for line in lines)


def test_nan_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    (op,) = ops(["pack_context"])
    case = next(iter(sanitize.cases(op)))
    broken = replace(op, ours=lambda *args, backend: op.ours(*args, backend=backend) * float("nan"))
    with pytest.raises(RuntimeError, match="pack_context paper-float32-forward: NaN"):
        sanitize.run(broken, case, "cpu", "reference")
    assert sanitize.run(op, case, "cpu", "reference") is None


def test_a_backend_that_ran_nothing_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sanitize, "run", lambda *_: "it cannot run")
    with pytest.raises(SystemExit) as stop:
        sanitize.main(["--device", "cpu", "--backend", "cuda"])
    assert stop.value.code == 1 and "cuda ran nothing" in capsys.readouterr().err


def test_a_backend_that_declines_is_a_reason() -> None:
    (op,) = ops(["pack_context"])
    declining = replace(op, ours=declines)
    reason = sanitize.run(declining, next(sanitize.cases(op)), "cpu", "cuda")
    assert reason == "backend 'cuda' cannot run pack_context: no"


def declines(*_: Any, backend: str) -> Any:
    raise RuntimeError(f"backend {backend!r} cannot run pack_context: no\nand more")

# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: RUF001 (typographic signs in the tables)
"""``python -m bench.gpu`` without a GPU: its steps in order, within their time, written at once."""

from __future__ import annotations

import json
import os
import sys
import time
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import __main__ as bench
from bench.gpu import __main__ as gpu
from bench.gpu import steps as gpu_steps
from bench.gpu import summary as gpu_summary
from bench.gpu.steps import Machine, Outcome, Step
from tdc_kernels import registry

HOPPER = Machine("cuda", "90a")
REHEARSAL = Machine("cpu", tiny=True)
REHEARSE = ["--device", "cpu", "--tiny"]


def says(code: str) -> tuple[str, ...]:
    return (sys.executable, "-S", "-c", code)


def go(steps: Sequence[Step], out: Path, budget_s: float = 60) -> list[Outcome]:
    return gpu.go(steps, out, budget_s, dict(os.environ), lambda _: None)


# ---------------------------------------------------------------- running steps


def test_a_failing_step_does_not_stop_the_others(tmp_path: Path) -> None:
    good, bad = says("print('fine')"), says("print('bad news'); raise SystemExit(3)")
    found = go([Step("a", (bad, good), 10), Step("b", (good,), 10)], tmp_path)
    assert [o.status for o in found] == ["failed", "passed"]
    assert found[0].reason.endswith("ended with status 3") and found[0].reason.count(";") == 0
    assert found[0].logs == ("logs/a-1.log", "logs/a-2.log") and found[1].logs == ("logs/b.log",)
    assert "bad news" in (tmp_path / "logs/a-1.log").read_text()


def test_commands_of_a_step_run_side_by_side(tmp_path: Path) -> None:
    """Each waits for the other's file."""
    code = (
        "import pathlib, sys, time; mine, other = map(pathlib.Path, sys.argv[1:]); mine.touch()\n"
        "while not other.exists(): time.sleep(0.01)"
    )
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    (found,) = go([Step("both", ((*says(code), a, b), (*says(code), b, a)), 10)], tmp_path)
    assert found.status == "passed"


def test_a_late_step_is_killed_with_its_children(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time; p = subprocess.Popen(['sleep', '60']);"
        "print(p.pid, flush=True); time.sleep(60)"
    )
    begin = time.monotonic()
    found = go([Step("late", (says(code),), 1.0), Step("next", (says("1"),), 10)], tmp_path)
    assert time.monotonic() - begin < 10
    assert [o.status for o in found] == ["timed out", "passed"] and "after 1 s" in found[0].reason
    child = int((tmp_path / "logs/late.log").read_text().split()[-1])
    for _ in range(100):
        state = Path(f"/proc/{child}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            break
        time.sleep(0.02)
    else:
        pytest.fail("the child goes on")


def test_what_does_not_fit_is_listed(tmp_path: Path) -> None:
    begun = time.monotonic() - 50
    steps = [Step("long", (says("1"),), 60, least_s=20), Step("short", (says("1"),), 60, least_s=1)]
    found = gpu.go(steps, tmp_path, 60, dict(os.environ), lambda _: None, begun)
    assert [o.status for o in found] == ["not run", "passed"]
    assert found[0].reason == "out of time" and found[0].logs == ()


def test_a_step_has_no_more_than_what_is_left(tmp_path: Path) -> None:
    slow = Step("slow", (says("import time; time.sleep(60)"),), 60, least_s=0.5)
    begin = time.monotonic()
    (found,) = go([slow], tmp_path, budget_s=1.0)
    assert found.status == "timed out" and time.monotonic() - begin < 10


@pytest.mark.parametrize("judges", [True, False])
@pytest.mark.parametrize(
    ("code", "limit", "bad"),
    [
        ("1", 10, False),
        ("raise SystemExit(1)", 10, True),
        ("import time; time.sleep(9)", 0.5, True),
    ],
)
def test_only_tests_and_sanitizer_judge(
    judges: bool, code: str, limit: float, bad: bool, tmp_path: Path
) -> None:
    step = Step("x", (says(code),), limit, judges=judges)
    assert gpu.status(go([step], tmp_path)) == int(judges and bad)


# ---------------------------------------------------------------- the table of steps


def test_the_steps_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_steps.shutil, "which", lambda name: "/bin/sh")
    steps = {step.name: step for step in gpu_steps.steps(HOPPER, tmp_path)}
    names = list(steps)
    assert names[:2] == ["build", "ceilings"] and names[-1] == "plots"
    assert names.index("ops") < names.index("tests") < names.index("ops, autotuned")
    assert names.index("pipeline, qwen2-7b") < names.index("tests")
    assert [s.name for s in steps.values() if s.judges] == ["tests", "sanitizer"]
    assert steps["build"].why_not is steps["sanitizer"].why_not is None
    for step in steps.values():
        for command in step.commands:
            assert "--tiny" not in command and "tiny" not in command
    assert steps["pipeline, llama-3.2-3b"].commands[0][3:6] == ("pipeline", "--scale", "paper")
    tools = [command[command.index("--tool") + 1] for command in steps["sanitizer"].commands]
    assert tools == ["memcheck", "racecheck"]
    environment = gpu_steps.environment(HOPPER, tmp_path / "packages")
    assert environment["TDC_CUDA_ARCHS"] == "90a"
    assert str(tmp_path / "packages") in environment["PYTHONPATH"].split(os.pathsep)


@pytest.mark.parametrize("machine", [HOPPER, REHEARSAL], ids=["gpu", "rehearsal"])
def test_the_commands_of_the_benchmarks_are_understood(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(bench, "run", lambda benchmark, *_: asked.append(benchmark.name) or 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for step in gpu_steps.steps(machine, tmp_path):
        for words in step.commands:
            if words[1:3] == ("-m", "bench"):
                rest = [word.replace(gpu_steps.SECONDS, "5") for word in words[3:]]
                assert bench.main(rest) == 0
    assert asked == ["ops", "ops", "compressor", "pipeline", "ops", "pipeline", "ops"]


def test_every_op_is_tested_on_a_gpu() -> None:
    found = {path.name for path in gpu_steps.gpu_tests()}
    assert {f"test_{op}.py" for op in registry.ops()} <= found
    assert {"test_registration.py", "test_cuda_graphs.py"} <= found


def test_the_steps_of_a_rehearsal(tmp_path: Path) -> None:
    steps = gpu_steps.steps(REHEARSAL, tmp_path)
    without = [step.name for step in steps if step.why_not == "no CUDA device"]
    assert without == ["build", "tests", "sanitizer"]
    assert [s.name for s in steps] == [s.name for s in gpu_steps.steps(HOPPER, tmp_path)]
    found = go([step for step in steps if step.why_not], tmp_path / "out")
    assert {o.status for o in found} == {"not run"} and gpu.status(found) == 0
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("capability", "name"), [((8, 0), "80"), ((8, 9), "89"), ((9, 0), "90a"), ((10, 0), "100a")]
)
def test_architectures(capability: tuple[int, int], name: str) -> None:
    assert gpu_steps.architecture(*capability) == name


# ---------------------------------------------------------------- the command


def rehearse(out: Path, *options: str) -> int:
    return gpu.main([*REHEARSE, "--out", str(out), *options])


def test_a_rehearsal_writes_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The real table, with its slow commands replaced; the summary is there after every step."""
    quick = says("import pathlib; assert pathlib.Path(r'%s').parent.exists()" % (tmp_path / "out"))
    seen: list[int] = []
    write = gpu_summary.write

    def counting(*args: Any, **kwargs: Any) -> Path:
        path = write(*args, **kwargs)
        seen.append(path.read_text().count("| passed |"))
        return path

    steps = gpu_steps.steps

    def small(machine: Machine, out: Path) -> list[Step]:
        return [replace(s, commands=(quick,), least_s=0) for s in steps(machine, out)]

    monkeypatch.setattr(gpu_steps, "steps", small)
    monkeypatch.setattr(gpu_summary, "write", counting)
    assert rehearse(tmp_path / "out") == 0
    count = len(steps(REHEARSAL, tmp_path))
    assert len(seen) == count and seen == sorted(seen) and seen[-1] == count - 3
    text = (tmp_path / "out/summary.md").read_text()
    assert text.startswith("# A rehearsal on the CPU") and "≥ 8× eager" in text
    assert text.count("no CUDA device") == 5  # three steps, and the two that judge above all
    assert "reached" not in text and "missed" not in text
    recorded = json.loads((tmp_path / "out/steps.json").read_text())["steps"]
    assert len(recorded) == count
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "out/summary.md")


def test_the_steps_know_the_packages_that_were_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel(tmp_path, "tdc_made_up_package")
    seen: list[str | None] = []

    def steps(*_: object) -> list[Step]:
        seen.append(gpu_steps.missing("tdc_made_up_package"))
        return [Step("a", (says("import tdc_made_up_package"),), 10, 0)]

    monkeypatch.setattr(gpu_steps, "steps", steps)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert rehearse(tmp_path / "out", "--wheels", str(tmp_path)) == 0
    text = (tmp_path / "out/summary.md").read_text()
    assert seen == [None] and "| a | passed |" in text
    assert "added for this run: tdc_made_up_package" in text


def test_failed_tests_are_the_exit_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = Step("tests", (says("raise SystemExit(1)"),), 10, 0, judges=True)
    monkeypatch.setattr(gpu_steps, "steps", lambda *_: [bad, Step("b", (says("1"),), 10, 0)])
    assert rehearse(tmp_path / "out") == 1
    text = (tmp_path / "out/summary.md").read_text()
    assert "- **tests: failed**" in text.split("## Targets")[0] and "logs/tests.log" in text


def test_a_summary_that_fails_does_not_stop_the_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_: Sequence[Outcome]) -> None:
        raise ValueError("no table")

    step = Step("a", (says("1"),), 10, 0)
    found = gpu.go([step, step], tmp_path, 60, dict(os.environ), broken)
    assert [o.status for o in found] == ["passed", "passed"]
    assert "the summary could not be written: ValueError('no table')" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--device", "cpu"], "--tiny and --device cpu go together"),
        (
            ["--device", "cpu", "--tiny", "--budget", "0"],
            "--budget: expected seconds above 0, got 0",
        ),
        (
            ["--device", "cpu", "--tiny", "--wheels", "no/such"],
            "--wheels: there is no folder no/such",
        ),
        pytest.param(
            [],
            "there is no CUDA device (--device cpu --tiny rehearses without one)",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
    ],
)
def test_bad_arguments_are_one_line_and_nothing_is_written(
    args: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        gpu.main([*args, "--out", str(tmp_path / "out")])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1
    assert said.startswith(f"python -m bench.gpu: {message}") and not (tmp_path / "out").exists()


def test_results_of_before_are_not_mixed_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "old.csv").write_text("")
    with pytest.raises(SystemExit):
        rehearse(tmp_path)
    assert "--out: expected a new or empty folder" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["old.csv"]


# ---------------------------------------------------------------- wheels


def wheel(folder: Path, name: str) -> None:
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as file:
        file.writestr(f"{name}.py", "HERE = True\n")
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")


def test_only_missing_packages_are_wanted(tmp_path: Path) -> None:
    for name in ("torch", "triton", "nvidia_cublas", "pytest", "numpy", "tdc_made_up_package"):
        wheel(tmp_path, name)
    found = [path.name for path in gpu.wanted_wheels(tmp_path)]
    assert found == ["tdc_made_up_package-1.0-py3-none-any.whl"]


def test_wheels_go_into_a_folder_of_their_own(tmp_path: Path) -> None:
    wheel(tmp_path, "tdc_made_up_package")
    target = tmp_path / "packages"
    assert gpu.install(tmp_path, target) == "added for this run: tdc_made_up_package"
    assert gpu_steps.missing("tdc_made_up_package") == "tdc_made_up_package is not installed"
    assert (target / "tdc_made_up_package.py").exists()
    (tmp_path / "tdc_made_up_package-1.0-py3-none-any.whl").write_text("no zip")
    assert gpu.install(tmp_path, target).startswith("no packages added: ")
    assert gpu.install(None, target) == "no packages added"

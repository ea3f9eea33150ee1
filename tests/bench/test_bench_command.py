# SPDX-License-Identifier: Apache-2.0
"""``python -m bench`` and ``python -m bench.compare`` as commands, at tiny sizes."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench import __main__ as command
from bench import compare, kernels, providers, pytest_ops
from bench.benchmark import Benchmark, Measurement, Refused, op_names, ops
from bench.report import results
from bench.run import Run
from bench.timing import machine
from tdc_kernels import registry

RATES = {"float32": 1e12}
ROOT = Path(__file__).parent.parent.parent
# The compilers' share of a run is minutes; with dynamo off those providers are eager.
ENVIRONMENT = {**os.environ, "TORCHDYNAMO_DISABLE": "1", "OMP_NUM_THREADS": "1"}
ENVIRONMENT.pop("PYTEST_XDIST_WORKER", None)  # what runs inside is no worker of ours
ENVIRONMENT.pop("PYTEST_ADDOPTS", None)
TINY = ["--tiny", "--budget", "0", "--threads", "1"]

pytestmark = pytest.mark.usefixtures("quick")


def bench(*args: str) -> int:
    return command.main([*args, *TINY])


def test_everything_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    found = command.catalogue()
    assert set(registry.ops()) <= set(found) and set(op_names()) == set(registry.ops())
    assert set(found) - set(op_names()) == {
        *("accelerate", "compressor", "connector", "memory", "pipeline")
    }
    with pytest.raises(SystemExit) as stop:
        command.main(["--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    for name, about in found.items():
        assert about.endswith(".") and f"  {name:17} {about}\n" in said
        assert len(about) < 100
    assert "bench.compare" in said and "bench.gpu" in said


@pytest.mark.parametrize(
    ("name", "option"),
    [("compressor", "--part"), ("pipeline", "--scale"), ("memory", "--stage")],
)
def test_each_has_its_options(name: str, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        command.main([name, "--help"])
    assert stop.value.code == 0 and option in capsys.readouterr().out


def test_a_run_writes_the_rows_of_its_op(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench("scene_boundaries", "--untested", "--out", str(tmp_path)) == 0
    found = results.read(tmp_path / f"{machine.machine()}.csv")
    cases = list(dict.fromkeys(row["case"] for row in found))
    assert cases == ["paper", "small", "ragged", "long"]
    providers = {row["provider"] for row in found}
    assert providers >= {"release", "eager", "compile", "compile-max-autotune", "reference"}
    assert all(float(row["median_ms"]) > 0 and int(row["rounds"]) >= 5 for row in found)
    assert sum(row["automatic"] == "yes" for row in found) == 4
    assert {row["note"] for row in found} == {"the op's tests were not run"}
    assert {row["torch"] for row in found} == {torch.__version__} and found[0]["commit"]
    lines = capsys.readouterr().out.splitlines()
    table = lines[lines.index("scene_boundaries paper-float32-forward") :]
    assert table[1].split()[:3] == ["provider", "median", "ms"]
    ours = next(row["provider"] for row in found if row["automatic"])
    assert next(line for line in table if line.split()[0] == ours).split()[-1] == "1"


# A process that imports torch and its compiler takes five seconds of CPU before it does anything.
IN_A_PROCESS = pytest.mark.slow


@IN_A_PROCESS
def test_torch_is_enough(tmp_path: Path) -> None:
    """As a command, in a process of its own, which finds nothing else."""
    code = (
        "import importlib.machinery, runpy, sys; absent = sys.argv.pop(1).split(',')\n"
        "class Finder(importlib.machinery.PathFinder):\n"
        "    @classmethod\n"
        "    def find_spec(cls, name, *rest):\n"
        "        there = name.split('.')[0] not in absent\n"
        "        return super().find_spec(name, *rest) if there else None\n"
        "sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Finder\n"
        "runpy.run_module('bench', run_name='__main__', alter_sys=True)"
    )
    absent = "pytest,pytest_benchmark,transformers,matplotlib,numpy,hypothesis,PIL"
    options = ["scene_boundaries", *TINY, "--seconds", "60", "--first", "--out", str(tmp_path)]
    command = [sys.executable, "-c", code, absent, *options]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(tmp_path.glob("*.csv"))) == 1


@pytest.mark.parametrize("option", [["-k", "small"], ["--dry-run"]])
def test_a_part_of_the_cases_writes_nothing(
    option: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench("scene_boundaries", "--untested", "--out", str(tmp_path), *option) == 0
    said = capsys.readouterr().out
    assert f"nothing written: {option[0]}" in said and not list(tmp_path.iterdir())
    assert ("scene_boundaries paper-float32-forward" in said) == (option[0] != "-k")


def test_an_op_whose_tests_fail_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tests = tmp_path / "tests"
    tests.mkdir()
    (tests / "test_scene_boundaries.py").write_text("def test_broken():\n    assert 1 == 2\n")
    monkeypatch.setattr(kernels, "TESTS", tests)
    assert bench("scene_boundaries", "--out", str(tmp_path / "out")) == command.REFUSED
    refusals = capsys.readouterr().err.splitlines()
    assert len(refusals) == 1
    assert "the tests of scene_boundaries do not pass: FAILED" in refusals[0]
    assert "nothing of this op is written" in refusals[0]
    assert not (tmp_path / "out").exists()


def test_the_tests_of_an_op_are_found(tmp_path: Path) -> None:
    assert kernels.failing_tests("frame_similarity", tmp_path) == (
        f"there are no tests of frame_similarity in {tmp_path}"
    )
    other = tmp_path / "test_other.py"
    other.write_text("def test_it():\n    print('segment_scenes()')\n")
    assert kernels.tests_of("segment_scenes", tmp_path) == [other]
    own = tmp_path / "test_segment_scenes_more.py"
    own.touch()
    assert kernels.tests_of("segment_scenes", tmp_path) == [own]
    assert all(kernels.tests_of(op, kernels.TESTS) for op in op_names())


def test_an_op_with_an_error_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare = providers.prepare

    def failing(op: object, case: object, *rest: object) -> providers.Prepared:
        if op.name == "anchor_queries":
            raise RuntimeError("broken")
        return prepare(op, case, *rest)

    monkeypatch.setattr(providers, "prepare", failing)
    names = ["anchor_queries", "scene_boundaries"]
    assert bench(*names, "--untested", "--out", str(tmp_path)) == 1
    assert {r["op"] for r in results.read(*tmp_path.iterdir())} == {"scene_boundaries"}
    said = capsys.readouterr()
    assert "anchor_queries: failed, nothing written" in said.out and "broken" in said.err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nonsense"], "python -m bench: NAME: expected some of "),
        ([*TINY], "python -m bench: --tiny: its numbers are no results"),
        (["--first"], "python -m bench: --first: needs --seconds"),
        (["--seconds", "1", "-k", "x"], "python -m bench: -k: not with --seconds"),
        (["pack_context", "--rounds", "0"], "python -m bench pack_context: --rounds: expected"),
        pytest.param(
            ["compressor", "--device", "cuda"],
            "python -m bench compressor: --device cuda: there is no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
    ],
)
def test_bad_arguments_are_one_line(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        sys.exit(command.main(args))
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.startswith(message) and said.count("\n") == 1


def test_an_option_of_another_benchmark_stops_all_of_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stop:
        command.main(["scene_boundaries", "connector", "--frames", "8", "--dry-run"])
    assert stop.value.code == 2 and "--frames" in capsys.readouterr().err


def test_the_file_grows_with_every_measurement(tmp_path: Path) -> None:
    """What was measured before an error is kept."""

    def measurements(_: object) -> Iterator[Measurement]:
        for name in ("a", "b"):
            yield Measurement(name, "made up", {"ours": int, "x": int}, results.of_part(name))
        raise Refused("enough")

    made_up = Benchmark("made up", measurements)
    args = SimpleNamespace(rounds=2, dry_run=False, out=tmp_path, device="cpu")
    with pytest.raises(Refused, match="enough"):
        Run(made_up, args).go()
    entry = results.json.loads((tmp_path / f"{machine.machine()}.json").read_text())["made up"]
    assert [row["part"] for row in entry["rows"]] == ["a", "b"]
    assert all(row["load_before"] >= 0 and set(row["ratios"]) == {"x"} for row in entry["rows"])


def test_pytest_benchmark_gets_a_group_per_case(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not request.config.pluginmanager.hasplugin("benchmark"):
        pytest.skip("pytest-benchmark is not there")
    fixture = request.getfixturevalue("benchmark")
    (op,) = ops(["pack_context"])
    case = next(c for c in op.cases if c.backward).tiny()
    monkeypatch.setattr(pytest_ops, "failing_tests", lambda *_: None)
    pytest_ops.test_op(op, case, "eager", fixture)
    timed = {mark.values[2] for mark in pytest_ops.CASES if mark.values[0] is op}
    assert timed == set(providers._candidates(op, case, "cpu"))
    assert fixture.group == f"pack_context {case}"
    assert fixture.disabled or fixture.stats.stats.rounds == pytest_ops.ROUNDS
    monkeypatch.setattr(pytest_ops, "failing_tests", lambda *_: "they fail")
    with pytest.raises(pytest.fail.Exception, match="they fail"):
        pytest_ops.test_op(op, case, "eager", fixture)


# ---------------------------------------------------------------- two revisions


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    root.mkdir()
    git(root, "init", "-q")
    (root / "what").write_text("old")
    git(root, "add", "what")
    git(root, "commit", "-q", "-m", "first")
    (root / "what").write_text("new")
    return root


def git(root: Path, *args: str) -> str:
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    return subprocess.run(
        ["git", *who, *args], cwd=root, check=True, capture_output=True, text=True
    ).stdout


def test_a_checkout_is_gone_afterwards(repository: Path) -> None:
    with compare.checkout("HEAD", repository) as tree:
        assert (tree / "what").read_text() == "old"
    assert not tree.parent.exists()
    assert len(git(repository, "worktree", "list").splitlines()) == 1


def test_a_revision_that_does_not_build_is_one_line_and_gone(repository: Path) -> None:
    (repository / "setup.py").write_text("raise SystemExit('no compiler')")
    git(repository, "add", "setup.py")
    git(repository, "commit", "-q", "-m", "second")
    with (
        pytest.raises(RuntimeError, match=r"^HEAD does not build: no compiler$"),
        compare.checkout("HEAD", repository),
    ):
        pass
    assert len(git(repository, "worktree", "list").splitlines()) == 1


def test_an_unknown_revision_is_one_line(capsys: pytest.CaptureFixture) -> None:
    assert compare.main(["no-such-revision"]) == 1
    message = "BASE: expected a revision of this repository, got 'no-such-revision'"
    assert capsys.readouterr().err == f"bench.compare: {message}\n"


class Here:
    """A side without a process."""

    name = "head"

    def ask(self, **request: Any) -> Any:
        if "take" in request:
            return self.samplers[request["take"]].run()
        what = request["op"], request["case"]
        with torch.enable_grad():  # set by the case
            self.samplers = compare._prepare(*what, "cpu", True, {torch.float32: 1e12})
        return {"providers": list(self.samplers)}


@IN_A_PROCESS
def test_both_sides_take_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The base from a folder of its own, in a process; the head here, which saves one."""
    base, here = tmp_path / "old", ROOT / "tdc_kernels"
    base.mkdir()
    for path in here.iterdir():
        (base / path.name).symlink_to(path)
    (base / "__init__.py").unlink()
    text = (here / "__init__.py").read_text()
    (base / "__init__.py").write_text(f"{text}\nimport sys\nsys.stderr.write('the old one')\n")
    monkeypatch.setattr(os, "environ", ENVIRONMENT)
    options = ["--device", "cpu", "--threads", "1", "--tiny"]
    with compare.side("base", base, options) as a:
        found = compare.compare((a, Here()), "scene_boundaries", "small-float32-forward", 0, RATES)
        with pytest.raises(RuntimeError, match="base: ModuleNotFoundError"):
            a.ask(op="no_such_op", case="small-float32-forward", rates=RATES)
        a.process.kill()
        a.process.wait()
        a.process.stdin = io.StringIO()  # what is written to nobody is lost
        with pytest.raises(RuntimeError, match="base: the worker died"):
            a.ask(take="eager")
    names = [name for name, _, _ in found]
    assert {"eager", "reference"} <= set(names) and "release" not in names
    assert all(base and head for _, base, head in found)
    assert "the old one" in capfd.readouterr().err


def test_a_case_without_providers_says_so() -> None:
    side = SimpleNamespace(name="base", ask=lambda **_: {"providers": []})
    with pytest.raises(RuntimeError, match="too slow here"):
        compare.compare((side, side), "pack_context", "paper-float32-forward", 0.0, RATES)


def test_the_table_of_two_revisions() -> None:
    found = [("native", 2e-3, 1e-3), ("eager", 3e-3, 3e-3), ("triton", None, 5e-4)]
    faster, control, added = compare.lines("pack_context", "paper-float32-forward", found)
    assert faster.split()[2:] == ["native", "2", "1", "2.000"]
    assert control.split()[-2:] == ["1.000", "(control)"]
    assert added.split()[2:] == ["triton", "-", "0.5", "-"]

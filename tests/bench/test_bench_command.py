# SPDX-License-Identifier: Apache-2.0
"""``python -m bench`` and ``python -m bench.compare`` as commands, at tiny sizes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench import compare
from bench.__main__ import REFUSED, failing_tests
from bench.report import results
from bench.timing import turns as harness

RATES = {"float32": 1e12}
ROOT = Path(__file__).parent.parent.parent
# The compilers' share of a run is minutes; with dynamo off those providers are eager.
ENVIRONMENT = {**os.environ, "TORCHDYNAMO_DISABLE": "1", "OMP_NUM_THREADS": "1"}
ENVIRONMENT.pop("PYTEST_XDIST_WORKER", None)  # what runs inside is no worker of ours
ENVIRONMENT.pop("PYTEST_ADDOPTS", None)


def python(*args: str, env: dict[str, str] = ENVIRONMENT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *args], cwd=ROOT, env=env, capture_output=True, text=True
    )


def bench(*args: str) -> subprocess.CompletedProcess[str]:
    return python("-m", "bench", "--tiny", "--budget", "0", *args)


def test_a_run_writes_the_rows_of_its_op(tmp_path: Path) -> None:
    done = bench("scene_boundaries", "--untested", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout
    assert "benchmark 'scene_boundaries paper-float32-forward'" in done.stdout  # its statistics
    found = results.read(tmp_path / f"{harness.machine()}.csv")
    cases = list(dict.fromkeys(row["case"] for row in found))
    assert cases == ["paper", "small", "ragged", "long"]
    providers = {row["provider"] for row in found}
    assert providers >= {"release", "eager", "compile", "compile-max-autotune", "reference"}
    assert all(float(row["median_ms"]) > 0 and int(row["rounds"]) >= 5 for row in found)
    assert sum(row["automatic"] == "yes" for row in found) == 4
    assert {row["note"] for row in found} == {"the op's tests were not run"}
    assert {row["torch"] for row in found} == {torch.__version__} and found[0]["commit"]


def test_torch_and_pytest_are_enough(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(sys.argv.pop(1).split(',')));"
        "import bench.__main__ as m; sys.exit(m.main(sys.argv[1:]))"
    )
    absent = "pytest_benchmark,transformers,matplotlib,numpy,hypothesis,PIL"
    options = ["scene_boundaries", "--tiny", "--budget", "0", "--untested", "--out", str(tmp_path)]
    environment = {**ENVIRONMENT, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = python("-c", code, absent, *options, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(tmp_path.glob("*.csv"))) == 1


def test_a_part_of_the_cases_writes_nothing(tmp_path: Path) -> None:
    done = bench("scene_boundaries", "--untested", "--out", str(tmp_path), "-k", "small")
    assert done.returncode == 0, done.stdout
    assert "nothing written" in done.stdout and not list(tmp_path.iterdir())


def test_an_op_whose_tests_fail_is_refused(tmp_path: Path) -> None:
    tests = tmp_path / "tests"
    tests.mkdir()
    (tests / "test_scene_boundaries.py").write_text("def test_broken():\n    assert 1 == 2\n")
    out = tmp_path / "out"
    code = (
        "import pathlib, sys, bench.__main__ as m; m.TESTS = pathlib.Path(sys.argv[1]);"
        "sys.exit(m.main(sys.argv[2:]))"
    )
    options = ["scene_boundaries", "--tiny", "--budget", "0", "--out", str(out)]
    done = python("-c", code, str(tests), *options)
    assert done.returncode == REFUSED
    refusals = [line for line in done.stdout.splitlines() if "refused" in line]
    assert len(refusals) == 1
    assert "the tests of scene_boundaries do not pass: FAILED" in refusals[0]
    assert not out.exists()


def test_the_tests_of_an_op_are_found(tmp_path: Path) -> None:
    assert failing_tests("frame_similarity", tmp_path) == (
        f"there are no tests of frame_similarity in {tmp_path}"
    )
    (tmp_path / "test_other.py").write_text("def test_it():\n    print('segment_scenes()')\n")
    assert failing_tests("segment_scenes", tmp_path) is None


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nonsense"], "OP: expected one of "),
        ([], "--tiny: its numbers are no results"),
        pytest.param(
            ["--device", "cuda"],
            "--device cuda: there is no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
    ],
)
def test_bad_arguments_are_one_line(args: list[str], message: str) -> None:
    done = bench(*args)
    assert done.returncode == 2
    assert done.stderr.startswith(f"python -m bench: {message}") and done.stderr.count("\n") == 1


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


def test_both_sides_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", ENVIRONMENT)
    options = ["--device", "cpu", "--threads", "1", "--tiny"]
    package = ROOT / "tdc_kernels"
    with compare.side("base", package, options) as a, compare.side("head", package, options) as b:
        found = compare.compare((a, b), "scene_boundaries", "small-float32-forward", 0.0, RATES)
        with pytest.raises(RuntimeError, match="base: ModuleNotFoundError"):
            a.ask(op="no_such_op", case="small-float32-forward", rates=RATES)
    names = [name for name, _, _ in found]
    assert {"eager", "reference"} <= set(names) and "release" not in names
    assert all(base and head for _, base, head in found)


def test_a_case_without_providers_says_so() -> None:
    side = SimpleNamespace(name="base", ask=lambda **_: {"providers": []})
    with pytest.raises(RuntimeError, match="too slow here"):
        compare.compare((side, side), "pack_context", "paper-float32-forward", 0.0, RATES)


def test_the_base_is_imported_from_its_own_folder(tmp_path: Path) -> None:
    package = tmp_path / "old"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('the old one')")
    with (
        compare.side("base", package, []) as side,
        pytest.raises(RuntimeError, match="base: the worker died"),
    ):
        side.ask(op="scene_boundaries", case="small-float32-forward", rates=RATES)


def test_the_table_of_two_revisions() -> None:
    found = [("native", 2e-3, 1e-3), ("eager", 3e-3, 3e-3), ("triton", None, 5e-4)]
    faster, control, added = compare.lines("pack_context", "paper-float32-forward", found)
    assert faster.split()[2:] == ["native", "2", "1", "2.000"]
    assert control.split()[-2:] == ["1.000", "(control)"]
    assert added.split()[2:] == ["triton", "-", "0.5", "-"]

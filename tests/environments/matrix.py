# SPDX-License-Identifier: Apache-2.0
"""Environments as a stranger installs them: every Python, the oldest and the newest dependencies.

``python tests/environments/matrix.py [NAME ...]`` builds the wheel once, installs it into a fresh
environment per NAME without constraints.txt, and runs ``tdc demo``, ``tdc doctor`` and a subset of
the tests there; without a NAME all of them, ``--list`` prints the names. Needs uv and an
interpreter per version (``uv python install 3.10 3.13``; pyenv: ``PYENV_VERSION=3.10:3.13``).
PyTorch on Linux is the CUDA build of several GB unless ``UV_TORCH_BACKEND=cpu`` says otherwise.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = ("model", "train", "triton")
# What differs between releases of the dependencies: media, transformers' processors, Triton, PEFT.
SUBSET = (
    *("tests/media", "tests/processor", "tests/model/test_session.py"),
    *(f"tests/ops/test_{name}.py" for name in ("cross_attention", "cuda_on_cpu", "triton_aot")),
    "tests/cli/test_cli_commands.py",
)
SHOWN = ("torch", "triton", "transformers", "av", "numpy", "pillow")


@dataclass(frozen=True)
class Environment:
    """A Python version and what is asked of its dependencies."""

    python: str
    oldest: bool = False
    pins: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return "-".join([self.python, *(self.pins or (("newest", "oldest")[self.oldest],))])


PYTHONS = ("3.10", "3.11", "3.12", "3.13")
ENVIRONMENTS = {
    e.name: e
    for e in [
        *(Environment(python, oldest) for python in PYTHONS for oldest in (True, False)),
        # Each of these releases changed what is called: PyAV 16 to 18, the torch between.
        *(Environment("3.11", pins=(f"av=={major}.*",)) for major in (16, 17, 18)),
        Environment("3.12", pins=("torch==2.13.*", "transformers==5.19.*")),
    ]
}


def uv() -> str | None:
    """The uv command: that of this environment, else the one on the path."""
    beside = Path(sys.executable).with_name("uv")
    return str(beside) if beside.exists() else shutil.which("uv")


def interpreter(version: str) -> str | None:
    """The path of a Python of this version on this machine, or None."""
    find = [str(uv()), "python", "find", "--system", "--no-python-downloads", version]
    found = subprocess.run(find, **_CAPTURED)
    return found.stdout.strip() if found.returncode == 0 else None


_CAPTURED = {"capture_output": True, "text": True}


class Failed(Exception):
    """A step that did not end with exit status 0, and the end of what it printed."""


def build_wheel(folder: Path) -> Path:
    """The pure-Python wheel of what git tracks, as a machine without PyTorch builds it.

    Everything else (tests, tiny, bench) stays in the new folder `folder`/source.
    """
    source = folder / "source"
    source.mkdir()
    names = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], check=True, **_CAPTURED).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, source / name)
    _run([str(uv()), "build", "--wheel", "--quiet", "--out-dir", folder, source])
    for package in ("tdc", "tdc_kernels"):  # the tests are to find the installed ones
        shutil.rmtree(source / package)
    return next(folder.glob("*.whl"))


def check(environment: Environment, wheel: Path, folder: Path) -> str:
    """Install and try one environment below `folder`; what was installed and passed, in a line.

    Raises:
        Failed: a step failed.
    """
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=folder) as home:
        versions = _install(environment, wheel, Path(home))
        passed = _try(Path(home), wheel.with_name("source"))
    return f"{environment.name}: {versions}; {passed}; {time.monotonic() - started:.0f} s"


def _install(environment: Environment, wheel: Path, home: Path) -> str:
    """Make the environment at `home`; returns the versions that it got."""
    _run([str(uv()), "venv", "--quiet", "--python", interpreter(environment.python), home])
    install = [str(uv()), "pip", "install", "--quiet", "--python", home / "bin/python"]
    if environment.oldest:
        extras = [f"--extra={extra}" for extra in EXTRAS]
        # Releases without a wheel for this Python are older than its support.
        lowest = ["--resolution=lowest-direct", "--only-binary=:all:"]
        _run([*install, *lowest, "-r", ROOT / "pyproject.toml", *extras])
        _run([*install, "--no-deps", wheel])
    else:
        _run([*install, f"{wheel}[{','.join(EXTRAS)}]", *environment.pins])
    _run([*install, "pytest", "hypothesis"])
    code = (
        "import tdc; from importlib.metadata import version; "
        f"assert tdc.__file__.startswith({str(home)!r}), tdc.__file__; "
        f"print(*(n + ' ' + version(n) for n in {SHOWN}), sep=', ')"
    )
    return _run([home / "bin/python", "-c", code], cwd=home).strip()


def _try(home: Path, source: Path) -> str:
    demo = _run([home / "bin/tdc", "demo"], cwd=home)
    table = demo[demo.index("\nquestion ") :].split("\n\n")[0].splitlines()[3:]
    answers = [re.split(r"  +", row.strip())[1:] for row in table]
    if len(answers) != 3 or any(answer != truth for answer, truth in answers):
        raise Failed(f"tdc demo does not answer its three questions:\n{demo}")
    _run([home / "bin/tdc", "doctor"], cwd=home)
    options = ["-q", "-m", "not slow", "--hypothesis-profile", "fast", "-p", "no:cacheprovider"]
    tests = _run([home / "bin/python", "-m", "pytest", *options, *SUBSET], cwd=source)
    return "demo 3 of 3, " + tests.strip().splitlines()[-1].strip("= ")


def _run(command: Sequence[str | Path | None], cwd: Path | None = None) -> str:
    words = [str(word) for word in command]
    # Not this process's packages and settings, but a stranger's.
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PYTEST", "TDC_"))}
    clean |= {"OMP_NUM_THREADS": "1", "TDC_BUILD_NATIVE": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(words, cwd=cwd, env=clean, **_CAPTURED)
    if done.returncode:
        raise Failed(f"{' '.join(words)}\n{done.stdout[-6000:]}{done.stderr[-3000:]}")
    return done.stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="environments; default all")
    parser.add_argument("--list", action="store_true", help="print the names and end")
    arguments = parser.parse_args()
    if arguments.list:
        print(*ENVIRONMENTS, sep="\n")
        return 0
    unknown = set(arguments.names) - set(ENVIRONMENTS)
    if unknown:
        parser.error(f"no environment {', '.join(sorted(unknown))}; --list prints the names")
    if uv() is None:
        parser.error("uv is needed: pip install uv")
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        wheel = build_wheel(Path(folder))
        for name in arguments.names or ENVIRONMENTS:
            try:
                print(check(ENVIRONMENTS[name], wheel, Path(folder)), flush=True)
            except Failed as error:
                failed += 1
                print(f"{name}: FAILED: {error}", flush=True)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())

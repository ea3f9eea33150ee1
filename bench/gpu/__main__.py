# SPDX-License-Identifier: Apache-2.0
"""Everything that a GPU has to say, in one command: ``python -m bench.gpu --out DIR``.

Builds the libraries against the installed PyTorch, measures what the machine can do, times kernels,
compressor and the whole pipeline at the paper's sizes against their peers, runs the tests and
compute-sanitizer, and writes CSV, JSON, plots and one short ``summary.md``. Made for a bare machine
that is there for ten minutes: it needs torch, triton, transformers, nvcc and pytest, no network and
no package index; every step is written down as soon as it is done; one that fails or takes too long
is reported and does not stop the others; what does not fit into the budget is listed.

``--device cpu --tiny`` rehearses it all where there is no GPU, at sizes that mean nothing.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import torch

from ..report import results
from ..timing import machine as here
from . import steps as gpu_steps
from . import summary as gpu_summary
from .steps import Machine, Outcome, Step

BUDGET_S = 480.0  # commands on a borrowed machine end after ten minutes
INSTALL_S = 60.0
# Never from the folder of wheels: what is installed must stay what it is.
NOT_TOUCHED = re.compile(r"^(torch|pytorch|triton|nvidia|cuda)")


# ---------------------------------------------------------------- wheels


def wanted_wheels(folder: Path) -> list[Path]:
    """Of the folder's wheels those whose distribution is not installed."""
    return [w for w in sorted(folder.glob("*.whl")) if _is_missing(w.name.split("-")[0])]


def _is_missing(name: str) -> bool:
    name = re.sub(r"[-_.]+", "-", name).lower()
    if NOT_TOUCHED.match(name):
        return False
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return True
    return False


def install(wheels: Path | None, target: Path) -> str:
    """Put missing packages into a folder of their own, which only this run looks into. One line."""
    names = [] if wheels is None else wanted_wheels(wheels)
    if not names:
        return "no packages added"
    pip = [sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    options = ["--no-index", "--no-deps", "--target", str(target)]
    done = subprocess.run(
        [*pip, *options, *map(str, names)], capture_output=True, text=True, timeout=INSTALL_S
    )
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["pip said nothing"]
        return f"no packages added: {lines[-1]}"
    return f"added for this run: {', '.join(w.name.split('-')[0] for w in names)}"


# ---------------------------------------------------------------- machine


def look(device: str, tiny: bool) -> tuple[Machine, str]:
    """What the steps depend on, and a line about it. In a process of its own: this one must not
    hold memory of the GPU while others measure."""
    if device == "cpu":
        return Machine("cpu", tiny=tiny), f"{here.machine()}, {_versions()}"
    code = (
        "import json, torch; p = torch.cuda.get_device_properties(0);"
        "print(json.dumps([p.name, p.major, p.minor, p.total_memory]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    name, major, minor, memory = json.loads(done.stdout)
    line = f"{name}, {memory / 2**30:.0f} GiB, {here.machine()}, {_versions()}"
    return Machine("cuda", gpu_steps.architecture(major, minor), tiny), line


def _versions() -> str:
    found = here.environment("cpu")["versions"]
    return ", ".join(f"{name} {version}" for name, version in found.items() if version)


# ---------------------------------------------------------------- the run


def go(
    steps: Sequence[Step],
    out: Path,
    budget_s: float,
    env: dict[str, str],
    report: Callable[[Sequence[Outcome]], None],
    begin: float | None = None,
) -> list[Outcome]:
    """All steps within the budget; ``report`` is called after each of them."""
    begin = time.monotonic() if begin is None else begin
    outcomes: list[Outcome] = []
    for step in steps:
        left = budget_s - (time.monotonic() - begin)
        outcome = gpu_steps.run(step, out, left, env)
        outcomes.append(outcome)
        said = f": {outcome.reason}" if outcome.reason else ""
        sys.stdout.write(f"{outcome.name}: {outcome.status} ({outcome.seconds:.0f} s){said}\n")
        try:
            report(outcomes)
        except Exception as error:  # the numbers are in their files; the next steps matter more
            sys.stdout.write(f"the summary could not be written: {error!r}\n")
        sys.stdout.flush()
    return outcomes


def status(outcomes: Sequence[Outcome]) -> int:
    """1 where the tests or the sanitizer failed or were cut off."""
    bad = ("failed", "timed out")
    return int(any(o.judges and o.status in bad for o in outcomes))


def main(argv: list[str] | None = None) -> int:
    begin = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m bench.gpu")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, required=True, help="new or empty folder")
    parser.add_argument("--wheels", type=Path, help="folder of wheels for what is not installed")
    parser.add_argument("--budget", type=float, default=BUDGET_S, help="seconds (default: 480)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal, with --device cpu")
    args = parser.parse_args(argv)
    wrong = _wrong(args)
    if wrong is not None:
        parser.exit(2, f"{parser.prog}: {wrong}\n")
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as packages:
        added = install(args.wheels, Path(packages))
        sys.path.append(packages)  # for the steps that ask what is installed
        machine, line = look(args.device, args.tiny)
        env = gpu_steps.environment(machine, Path(packages))

        def report(outcomes: Sequence[Outcome]) -> None:
            text = json.dumps({"steps": [asdict(o) for o in outcomes]}, indent=2)
            results.write(out / "steps.json", text + "\n")
            facts = f"{line}; commit {here.commit()}; {added}."
            gpu_summary.write(out, facts, outcomes, rehearsal=args.device == "cpu")

        steps = gpu_steps.steps(machine, out)
        outcomes = go(steps, out, args.budget, env, report, begin)
    sys.stdout.write(f"{out / 'summary.md'}\n")
    return status(outcomes)


def _wrong(args: argparse.Namespace) -> str | None:
    """One line about arguments that cannot be served, or None."""
    if args.device == "cuda" and not torch.cuda.is_available():
        return "there is no CUDA device (--device cpu --tiny rehearses without one)"
    if (args.device == "cpu") != args.tiny:
        return "--tiny and --device cpu go together: a rehearsal is not a measurement"
    if args.budget <= 0:
        return f"--budget: expected seconds above 0, got {args.budget:g}"
    if args.wheels is not None and not args.wheels.is_dir():
        return f"--wheels: there is no folder {args.wheels}"
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        return f"--out: expected a new or empty folder, got {args.out}"
    return None


if __name__ == "__main__":
    # Whoever ends this command ends its steps with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())

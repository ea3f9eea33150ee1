# SPDX-License-Identifier: Apache-2.0
"""Two revisions against each other: ``python -m bench.compare BASE``.

BASE is checked out and built in a temporary folder. It and the current tree are timed in one
session: one worker process per side, run by the same bench code (the current one), take turns
provider by provider. Plain eager PyTorch takes part on both sides as a control: what its ratio is
off from 1 is noise.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import providers
from .benchmark import Op, ops
from .timing import ceilings, machine, timers
from .timing.turns import interleave

ROOT = Path(__file__).parent.parent
ROUNDS = 5
REST_S = 5e-3  # between turns: the other side's threads stop spinning
CONTROL = ("eager",)


# ---------------------------------------------------------------- worker


def work(device: str, threads: int, tiny: bool) -> None:
    """Answer requests, one JSON line each, until standard input ends."""
    torch.set_num_threads(threads)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what compilers print is no answer
    samplers: dict[str, timers.Sampler] = {}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "take" in request:
                sampler = samplers[request["take"]]
                if sampler.loops > 1:  # a short call would pay for what the other side evicted
                    sampler.run()
                answer: Any = sampler.run()
            else:
                samplers.clear()  # before the next inputs are made
                rates = {getattr(torch, dtype): rate for dtype, rate in request["rates"].items()}
                samplers = _prepare(request["op"], request["case"], device, tiny, rates)
                answer = {"providers": list(samplers)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _prepare(
    op: str, name: str, device: str, tiny: bool, rates: providers.Rates
) -> dict[str, timers.Sampler]:
    (found,) = ops([op])
    case = next(case for case in found.cases if str(case) == name)
    case = case.tiny() if tiny else case
    torch.set_grad_enabled(case.backward)
    return providers.prepare(found, case, device, rates or None, CONTROL).samplers(device)


# ---------------------------------------------------------------- parent


@dataclass(frozen=True)
class Side:
    """One revision's worker."""

    name: str
    process: subprocess.Popen[str]

    def ask(self, **request: Any) -> Any:
        """Raises RuntimeError: what went wrong over there."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": "the worker died"}
        if isinstance(answer, dict) and "error" in answer:
            raise RuntimeError(f"{self.name}: {answer['error']}")
        return answer


@contextmanager
def side(name: str, package: Path, options: list[str]) -> Iterator[Side]:
    """A worker whose ``tdc_kernels`` is ``package`` and whose ``bench`` is this one.

    A folder with a link to the package alone goes first on the path: the checkout it is from has a
    ``bench`` too.
    """
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tdc_kernels").symlink_to(package, target_is_directory=True)
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.compare", "--worker", *options],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([folder, str(ROOT)])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            yield Side(name, process)
        finally:
            process.kill()
            process.communicate()


@contextmanager
def checkout(revision: str, root: Path = ROOT) -> Iterator[Path]:
    """A built work tree of ``revision``, gone afterwards. RuntimeError: why there is none."""
    known = _run(["git", "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}"], root)
    if known.returncode != 0:
        raise RuntimeError(f"BASE: expected a revision of this repository, got {revision!r}")
    folder = Path(tempfile.mkdtemp(prefix="bench-base-"))
    tree = folder / "tree"
    try:
        added = _run(["git", "worktree", "add", "--detach", str(tree), known.stdout.strip()], root)
        if added.returncode != 0:
            raise RuntimeError(f"git worktree: {_last(added)}")
        if (tree / "setup.py").exists():
            built = _run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], tree)
            if built.returncode != 0:
                raise RuntimeError(f"{revision} does not build: {_last(built)}")
        yield tree
    finally:
        _run(["git", "worktree", "remove", "--force", str(tree)], root)
        shutil.rmtree(folder, ignore_errors=True)


def _run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def _last(done: subprocess.CompletedProcess[str]) -> str:
    return ((done.stderr + done.stdout).strip().splitlines() or ["no output"])[-1]


def compare(
    sides: tuple[Side, Side], op: str, case: str, budget_s: float, rates: dict[str, float]
) -> list[tuple[str, float | None, float | None]]:
    """Provider, seconds of base, seconds of head; None where a side does not have it.

    ``rates`` of matrix products by dtype are one for both sides, so that they leave out the same.
    """
    names = {s.name: s.ask(op=op, case=case, rates=rates)["providers"] for s in sides}
    turns = {(s.name, provider): (s, provider) for s in sides for provider in names[s.name]}
    # The two sides of one provider follow each other.
    turns = dict(sorted(turns.items(), key=lambda item: item[0][1]))

    def sample(turn: tuple[Side, str]) -> tuple[float, float]:
        time.sleep(REST_S)
        wall, cpu = turn[0].ask(take=turn[1])
        return wall, cpu

    labels = {f"{who}\0{provider}": turn for (who, provider), turn in turns.items()}
    if not labels:
        raise RuntimeError("too slow here for every provider")
    times = interleave(labels, ROUNDS, budget_s=budget_s, sample=sample)
    medians = {label: timing.quantile(0.5) for label, timing in times.items()}
    every = dict.fromkeys(provider for s in sides for provider in names[s.name])
    base, head = (s.name for s in sides)
    return [(p, medians.get(f"{base}\0{p}"), medians.get(f"{head}\0{p}")) for p in every]


def lines(op: str, case: str, found: list[tuple[str, float | None, float | None]]) -> list[str]:
    """Rows of the printed table; above 1 the current tree is faster."""
    out = []
    for provider, base, head in found:
        ratio = f"{base / head:8.3f}" if base and head else f"{'-':>8}"
        cells = [f"{1e3 * s:10.4g}" if s is not None else f"{'-':>10}" for s in (base, head)]
        control = "  (control)" if provider in CONTROL else ""
        out.append(f"{op:17} {case:36} {provider:10} {' '.join(cells)} {ratio}{control}")
    return out


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m bench.compare")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("base", nargs="?", metavar="BASE", help="the revision to compare with")
    parser.add_argument("--ops", nargs="+", metavar="OP", help="default: all")
    parser.add_argument("--cases", nargs="+", default=["paper", "small"], help="their names")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--budget", type=float, default=2.0, help="seconds per case")
    parser.add_argument("--tiny", action="store_true", help="sizes that mean nothing")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.worker:
        work(args.device, args.threads, args.tiny)
        return 0
    if not args.base:
        parser.exit(2, f"{parser.prog}: BASE: expected a revision, got none\n")
    options = ["--device", args.device, "--threads", str(args.threads)]
    options += ["--tiny"] if args.tiny else []
    try:
        with ExitStack() as stack:
            tree = stack.enter_context(checkout(args.base))
            base = stack.enter_context(side("base", tree / "tdc_kernels", options))
            head = stack.enter_context(side("head", ROOT / "tdc_kernels", options))
            _table((base, head), ops(args.ops), args)
    except RuntimeError as error:
        sys.stderr.write(f"bench.compare: {error}\n")
        return 1
    return 0


def _table(sides: tuple[Side, Side], chosen: list[Op], args: argparse.Namespace) -> None:
    machine.load_of_others()
    found = {} if args.tiny else ceilings.matmul_rates(args.device)
    rates = {str(dtype).removeprefix("torch."): rate for dtype, rate in found.items()}
    head = f"{'op':17} {'case':36} {'provider':10} {'base ms':>10} {'head ms':>10} {'ratio':>8}"
    sys.stdout.write(head + "\n")
    for op in chosen:
        for case in op.cases:
            if case.name not in args.cases:
                continue
            try:
                found_here = compare(sides, op.name, str(case), args.budget, rates)
                table = lines(op.name, str(case), found_here)
            except RuntimeError as error:  # an op that one side lacks; the others go on
                table = [f"{op.name:17} {case!s:36} {error}"]
            sys.stdout.write("\n".join(table) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())

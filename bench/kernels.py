# SPDX-License-Identifier: Apache-2.0
"""The ops as one benchmark: every case of ``bench/ops`` is a measurement.

An op is measured whole or not at all, for results that are kept (``bench/results/<machine>.csv``),
and not while its tests fail. With ``--seconds`` the cases of all ops go one by one, the most wanted
first, each written as soon as it is measured: for a borrowed machine whose time may run out in
between (``bench.gpu``). The ceilings are written beside them, and what failed or was not reached
into ``ops.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from . import providers
from .benchmark import Benchmark, Case, Measurement, Op, Refused, Row, ops
from .report import results
from .report.results import PROGRESS
from .run import Run, say
from .timing import ceilings, machine, timers
from .timing.ceilings import Ceilings
from .timing.turns import Timing

TESTS = Path(__file__).parents[1] / "tests" / "ops"
AUTOTUNED = "compile-max-autotune"
ORDER = (  # of the ops with the most ambitious targets
    *("frame_similarity", "pack_context", "cross_attention", "anchor_queries"),
    *("segment_scenes", "scene_boundaries"),
)
CEILINGS = "ceilings.json"


class Whole(Run):
    """Every op whole or not at all."""

    def __init__(self, benchmark: Benchmark, args: argparse.Namespace) -> None:
        super().__init__(benchmark, args)
        self.ceilings = self.find_ceilings()
        self.path = args.out / f"{machine.results_name(args.device)}.csv"
        self.where = results.where(self.load, args.device)
        if args.untested:
            self.where["note"] = "the op's tests were not run"

    def find_ceilings(self) -> Ceilings:
        return ceilings.measure(self.args.device, tiny=self.args.tiny)

    def work(self) -> Iterator[tuple[str, Iterable[Measurement]]]:
        for op in ops(self.args.ops):
            yield op.name, self.cases(op)

    def cases(self, op: Op) -> Iterator[Measurement]:
        reason = None if self.args.untested else failing_tests(op.name, TESTS)
        if reason is not None:
            raise Refused(reason)
        for case in op.cases:
            if self.args.k in str(case):
                yield self.measurement(op, case)

    def measurement(self, op: Op, case: Case, peers: set[str] | None = None) -> Measurement:
        """One case, its providers compared. Raises what they raise, and Refused."""
        device, tiny = self.args.device, self.args.tiny
        case = case.tiny() if tiny else case
        with torch.set_grad_enabled(case.backward):
            rates = None if tiny else self.ceilings.matmul
            prepared = providers.prepare(op, case, device, rates, peers)
            samplers = prepared.samplers(device)
        cost = op.cost(case)
        common = results.of_case(op.name, case, cost, self.ceilings)
        least = self.ceilings.seconds(cost, case.dtype)[0]

        def rows(times: Mapping[str, Timing]) -> list[Row]:
            found = results.of_providers(prepared, samplers, times, cost, least)
            if device == "cuda" and case.name == "small":
                for row in found[: len(times)]:
                    call = prepared.calls[row["provider"]]
                    row["overhead_us"] = f"{timers.overhead_us(call, prepared.args):.5g}"
            return found

        return Measurement(
            f"{op.name} {case}",
            op.name,
            samplers,
            rows,
            self.where | common,
            ours=prepared.automatic,
            sample=timers.take,
            warmup=0,
            grad=case.backward,
        )

    def keep(self, measurement: Measurement, rows: list[Row]) -> None:
        self.rows.setdefault(measurement.record, []).extend(rows)

    def end(self, name: str) -> None:
        if self.args.k or self.args.dry_run:
            say([f"{name}: nothing written: {'-k' if self.args.k else '--dry-run'}"])
            return
        results.replace(self.path, name, self.rows[name])
        say([f"{name}: {len(self.rows[name])} rows written to {self.path}"])

    def failed(self, name: str, error: Exception) -> None:
        """The other ops go on."""
        if isinstance(error, Refused):
            raise Refused(f"{error}; nothing of this op is written")
        traceback.print_exception(error)
        say([f"{name}: failed, nothing written"])
        self.status = 1


def failing_tests(op: str, tests: Path) -> str | None:
    """Run the op's fast tests in a process of their own. None if they pass, else one line."""
    files = tests_of(op, tests)
    if not files:
        return f"there are no tests of {op} in {tests}"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not slow", "--no-header"]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", *map(str, files)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    if done.returncode == 0:
        return None
    lines = (done.stdout + done.stderr).strip().splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR", "E  "))]
    return f"the tests of {op} do not pass: {(failed or lines or ['no output'])[-1].strip()}"


def tests_of(op: str, tests: Path) -> list[Path]:
    """Its files; an op made of two others is tested with them."""
    own = sorted(tests.glob(f"test_{op}*.py"))
    return own or [f for f in sorted(tests.glob("test_*.py")) if f"{op}(" in f.read_text()]


# ---------------------------------------------------------------- case by case


class CaseByCase(Whole):
    """The cases of all ops until the time is over, each written when it is measured."""

    def __init__(self, benchmark: Benchmark, args: argparse.Namespace) -> None:
        self.stop = time.monotonic() + args.seconds
        super().__init__(benchmark, args)
        self.number = args.start
        self.name = ("first" if args.first else "all") + (", autotuned" if args.autotune else "")

    def find_ceilings(self) -> Ceilings:
        """Measured once for a folder, so that all its shares are of the same ceilings."""
        path = self.args.out / CEILINGS
        if path.exists():
            kept = json.loads(path.read_text())
            rates = {getattr(torch, name): rate for name, rate in kept["matmul"].items()}
            return Ceilings(kept["read"], kept["copy"], rates)
        found = super().find_ceilings()
        rates = {str(dtype).removeprefix("torch."): rate for dtype, rate in found.matmul.items()}
        kept = {"read": found.read, "copy": found.copy, "matmul": rates}
        results.write(path, json.dumps(kept, indent=2) + "\n")
        return found

    def work(self) -> Iterator[tuple[str, Iterable[Measurement]]]:
        pairs = [] if self.args.ceilings_only else plan(ops(self.args.ops), self.args.first)
        for number, (op, case) in enumerate(pairs[self.args.start :], self.args.start):
            self.number = number
            if time.monotonic() >= self.stop:
                self.note(not_reached=[f"{op.name} {case}" for op, case in pairs[number:]])
                return
            yield f"{op.name} {case}", self.one(op, case)

    def one(self, op: Op, case: Case) -> Iterator[Measurement]:
        # All but the autotuned compiler, which takes minutes on a machine that has eight.
        usual = {*op.peers(case), *providers.ATTENTION, "compile"}
        yield self.measurement(op, case, None if self.args.autotune else usual)
        if self.args.device == "cuda" and case.name == "paper" and not case.backward:
            args = op.arguments(case.tiny() if self.args.tiny else case, "cuda")
            self.note(launches={f"{op.name} {case}": launches(lambda: op.ours(*args))})

    def keep(self, measurement: Measurement, rows: list[Row]) -> None:
        results.merge(self.path, measurement.record, rows)

    def end(self, name: str) -> None:
        """Nothing is left to write."""

    def failed(self, name: str, error: Exception) -> None:
        """Of one case: the others are worth having."""
        line = (str(error).splitlines() or [type(error).__name__])[0][:300]
        say([f"{name}: failed: {line}"])
        self.note(failed={name: line})
        self.status = 1
        if self.args.device == "cuda":
            self.go_on_without()

    def go_on_without(self) -> None:
        """After an error that took the GPU's context with it, start over behind the case."""
        try:
            torch.cuda.synchronize()
        except Exception:
            left = max(0.0, self.stop - time.monotonic())
            again = [a for a in sys.argv[1:] if not a.startswith(("--start", "--seconds"))]
            again += [f"--start={self.number + 1}", f"--seconds={left:.0f}"]
            os.execv(sys.executable, [sys.executable, "-m", "bench", *again])

    def note(self, **found: Any) -> None:
        """Add to what ``ops.json`` says of this run: dictionaries are joined, lists replaced."""
        path = self.args.out / PROGRESS
        kept = json.loads(path.read_text()) if path.exists() else {}
        mine = kept.setdefault(self.name, {})
        for name, value in found.items():
            mine[name] = {**mine.get(name, {}), **value} if isinstance(value, dict) else value
        results.write(path, json.dumps(kept, indent=2) + "\n")


def plan(chosen: Iterable[Op], first: bool) -> list[tuple[Op, Case]]:
    """``first``: the paper's size forward, bf16 before fp32; else all cases, most wanted first."""

    def ambition(op: Op) -> tuple[int, str]:
        return ORDER.index(op.name) if op.name in ORDER else len(ORDER), op.name

    pairs = [(op, case) for op in sorted(chosen, key=ambition) for case in op.cases]
    if first:
        pairs = [(op, c) for op, c in pairs if c.name == "paper" and not c.backward]
    names = ("paper", "small", "blip2", "ragged")

    def wanted(pair: tuple[Op, Case]) -> tuple[Any, ...]:
        case = pair[1]
        place = names.index(case.name) if case.name in names else len(names)
        return place, case.backward, case.dtype == torch.float32

    return sorted(pairs, key=wanted)  # stable: ops in their order


def launches(call: Callable[[], object]) -> int:
    """Kernels that one call puts on the GPU, copies and fills not counted."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    call()  # compiles, allocates
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        call()
        torch.cuda.synchronize()
    kernels = [e for e in found.events() if e.device_type == DeviceType.CUDA]
    return sum(not e.name.startswith(("Memcpy", "Memset")) for e in kernels)


# ---------------------------------------------------------------- options


def options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--budget", type=float, default=2.0, help="seconds per case (default: 2)")
    add("-k", metavar="TEXT", default="", help="only cases whose name contains it; not written")
    add("--untested", action="store_true", help="do not run the ops' tests before")
    add("--tiny", action="store_true", help="sizes that mean nothing; needs --out")
    group = parser.add_argument_group("case by case")
    add = group.add_argument
    add("--seconds", type=float, help="the most wanted cases until this time is over")
    add("--start", type=int, default=0, help="number of the first case")
    add("--first", action="store_true", help="the paper's size, forward, only")
    add("--autotune", action="store_true", help="with the autotuned compiler")
    add("--ceilings-only", action="store_true")


def wrong(args: argparse.Namespace) -> str | None:
    if args.tiny and args.out.resolve() == results.RESULTS and not args.dry_run:
        return "--tiny: its numbers are no results, --out must be another folder"
    if args.seconds is not None:
        whole = {"-k": args.k, "--dry-run": args.dry_run}
        return next((f"{name}: not with --seconds" for name, on in whole.items() if on), None)
    single = ("start", "first", "autotune", "ceilings_only")
    used = [name.replace("_", "-") for name in single if getattr(args, name)]
    return f"--{used[0]}: needs --seconds" if used else None


def start(benchmark: Benchmark, args: argparse.Namespace) -> Run:
    return (Whole if args.seconds is None else CaseByCase)(benchmark, args)


BENCHMARK = Benchmark("ops", options=options, wrong=wrong, rounds=5, inference=False, run=start)

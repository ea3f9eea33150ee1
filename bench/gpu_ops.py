# SPDX-License-Identifier: Apache-2.0
"""The ops' cases one by one, the most wanted first, each written as soon as it is measured.

``python -m bench`` measures an op whole or not at all, for results that are kept; this is for a
borrowed machine whose time may run out in between (``bench/gpu``). It writes the same rows, into
``<out>/<device>.csv``, the ceilings beside them, and what was not reached into ``ops.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from bench import providers
from bench.benchmark import Benchmark, Case
from bench.gpu import sanitize
from bench.report import results
from bench.report.results import Row
from bench.timing import ceilings, timers
from bench.timing import turns as harness
from bench.timing.ceilings import Ceilings
from bench.timing.turns import Timing

AUTOTUNED = "compile-max-autotune"
ORDER = (  # of the ops with the most ambitious targets
    *("frame_similarity", "pack_context", "cross_attention", "anchor_queries"),
    *("segment_scenes", "scene_boundaries"),
)
CEILINGS, PROGRESS = "ceilings.json", "ops.json"
ROUNDS, BUDGET_S = 5, 1.0
DTYPES = {str(d).removeprefix("torch."): d for d in (torch.float32, torch.bfloat16)}


def plan(first: bool) -> list[tuple[Benchmark, Case]]:
    """``first``: the paper's size forward, bf16 before fp32; else all cases, most wanted first."""
    found = {b.op: b for b in sanitize.benchmarks()}
    ops = [found[op] for op in (*ORDER, *sorted(set(found) - set(ORDER))) if op in found]
    pairs = [(benchmark, case) for benchmark in ops for case in benchmark.cases]
    if first:
        pairs = [(b, c) for b, c in pairs if c.name == "paper" and not c.backward]
    names = ("paper", "small", "blip2", "ragged")

    def wanted(pair: tuple[Benchmark, Case]) -> tuple[Any, ...]:
        case = pair[1]
        place = names.index(case.name) if case.name in names else len(names)
        return place, case.backward, case.dtype == torch.float32

    return sorted(pairs, key=wanted)  # stable: ops in their order


# ---------------------------------------------------------------- ceilings


def the_ceilings(folder: Path, device: str, tiny: bool) -> Ceilings:
    """Measured once for a folder, so that all its shares are of the same ceilings."""
    path = folder / CEILINGS
    if path.exists():
        kept = json.loads(path.read_text())
        rates = {DTYPES[name]: rate for name, rate in kept["matmul"].items()}
        return Ceilings(kept["read"], kept["copy"], rates)
    found = ceilings.measure(device, tiny=tiny)
    by_name = {name: found.matmul[dtype] for name, dtype in DTYPES.items()}
    kept = {"read": found.read, "copy": found.copy, "matmul": by_name}
    harness.write_whole(path, json.dumps(kept, indent=2) + "\n")
    return found


# ---------------------------------------------------------------- one case


def measure(
    benchmark: Benchmark, case: Case, args: argparse.Namespace, ceiling: Ceilings
) -> list[dict[str, Any]]:
    """The rows of one case. Raises what the providers raise."""
    rates = None if args.tiny else ceiling.matmul
    peers = None if args.autotune else _peers(benchmark, case)
    with torch.set_grad_enabled(case.backward):
        prepared = providers.prepare(benchmark, case, args.device, rates, peers)
        copies = timers.copies(prepared.args, args.device)
        calls = prepared.calls.items()
        samplers = {name: timers.sampler(call, copies, args.device) for name, call in calls}
        times: Mapping[str, Timing] = {}
        if samplers:
            times = harness.interleave(
                samplers, ROUNDS, warmup=0, budget_s=args.budget, sample=timers.take
            )
        overheads = {}
        if args.device == "cuda" and case.name == "small":
            overheads = {name: timers.overhead_us(call, prepared.args) for name, call in calls}
    return results.rows(benchmark, case, prepared, samplers, times, ceiling, overheads)


def _peers(benchmark: Benchmark, case: Case) -> set[str]:
    """All but the autotuned compiler, which takes minutes on a machine that has eight."""
    return {*benchmark.peers(case), *providers.ATTENTION, "compile"}


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


def launches_of(benchmark: Benchmark, case: Case, device: str) -> int:
    args = benchmark.arguments(case, device)
    return launches(lambda: benchmark.ours(*args))


def merge(path: Path, op: str, rows: list[dict[str, Any]]) -> None:
    """Put the rows of a case where those of the same case were; other cases keep theirs."""

    def case_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(row[column] for column in results.KEY[:-1])

    new = {case_of(row) for row in rows}
    kept: list[Row] = [r for r in results.read(path) if r["op"] == op and case_of(r) not in new]
    results.replace(path, op, [*kept, *rows])


# ---------------------------------------------------------------- all of them


def run(args: argparse.Namespace) -> int:
    """Measures from case ``args.start`` on until the time is over; the number of failed cases."""
    stop = time.monotonic() + args.seconds
    environment = results.environment(harness.load_of_others(), args.device)
    ceiling = the_ceilings(args.out, args.device, args.tiny)
    if args.ceilings_only:
        return 0
    pairs = plan(args.first)
    path, name = args.out / f"{harness.results_name(args.device)}.csv", _key(args)
    for number, (benchmark, case) in enumerate(pairs[args.start :], args.start):
        if time.monotonic() >= stop:
            note(args.out, name, not_reached=[f"{b.op} {c}" for b, c in pairs[number:]])
            break
        case = case.tiny() if args.tiny else case
        try:
            rows = measure(benchmark, case, args, ceiling)
            merge(path, benchmark.op, [row | environment for row in rows])
            if args.device == "cuda" and case.name == "paper" and not case.backward:
                count = launches_of(benchmark, case, args.device)
                note(args.out, name, launches={f"{benchmark.op} {case}": count})
        except Exception as error:  # of one case: the others are worth having
            line = (str(error).splitlines() or [type(error).__name__])[0][:300]
            sys.stdout.write(f"{benchmark.op} {case}: failed: {line}\n")
            note(args.out, name, failed={f"{benchmark.op} {case}": line})
            _go_on_without(args, number, stop)
            continue
        timed = sum("median_ms" in row for row in rows)
        sys.stdout.write(f"{benchmark.op} {case}: {timed} of {len(rows)} providers timed\n")
        sys.stdout.flush()
    progress = args.out / PROGRESS
    kept = json.loads(progress.read_text()) if progress.exists() else {}
    return len(kept.get(name, {}).get("failed", {}))


def _key(args: argparse.Namespace) -> str:
    return ("first" if args.first else "all") + (", autotuned" if args.autotune else "")


def note(folder: Path, run: str, **found: Any) -> None:
    """Add to what ``ops.json`` says of a run: dictionaries are joined, lists replaced."""
    path = folder / PROGRESS
    kept = json.loads(path.read_text()) if path.exists() else {}
    mine = kept.setdefault(run, {})
    for name, value in found.items():
        mine[name] = {**mine.get(name, {}), **value} if isinstance(value, dict) else value
    harness.write_whole(path, json.dumps(kept, indent=2) + "\n")


def _go_on_without(args: argparse.Namespace, number: int, stop: float) -> None:
    """After an error that took the GPU's context with it, start over behind the case."""
    if args.device != "cuda":
        return
    try:
        torch.cuda.synchronize()
    except Exception:
        left = max(0.0, stop - time.monotonic())
        again = [a for a in sys.argv[1:] if not a.startswith(("--start", "--seconds"))]
        again += [f"--start={number + 1}", f"--seconds={left:.0f}"]
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, "-m", "bench.gpu_ops", *again])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m bench.gpu_ops")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--budget", type=float, default=BUDGET_S, help="seconds per case")
    parser.add_argument("--start", type=int, default=0, help="number of the first case")
    parser.add_argument("--first", action="store_true", help="the paper's size, forward, only")
    parser.add_argument("--autotune", action="store_true", help="with the autotuned compiler")
    parser.add_argument("--ceilings-only", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="sizes that mean nothing")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.exit(2, f"{parser.prog}: --device cuda: there is no CUDA device\n")
    return 1 if run(args) else 0


if __name__ == "__main__":
    sys.exit(main())

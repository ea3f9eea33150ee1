# SPDX-License-Identifier: Apache-2.0
"""Time the ops: ``python -m bench [OP ...]``.

pytest collects ``bench/<op>.py``, one test per case, and pytest-benchmark, where it is installed,
shows the statistics of every provider (``--benchmark-json=FILE`` and its other options pass
through). What is written is ``bench/results/<machine>.csv``.
"""

from __future__ import annotations

import argparse
import copy
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import providers
from bench.benchmark import Benchmark, Case
from bench.report import results
from bench.timing import ceilings, timers
from bench.timing import turns as harness
from bench.timing.timers import Sampler
from bench.timing.turns import Timing
from tdc_kernels import registry

BENCH = Path(__file__).parent
TESTS = BENCH.parent / "tests" / "ops"
ROUNDS = 5  # at least; more while the budget lasts
REFUSED = 3  # exit status


class Run:
    """The pytest plugin: measures the cases that pytest collects and keeps their rows."""

    def __init__(self, args: argparse.Namespace, path: Path) -> None:
        self.args, self.path = args, path
        self.environment = results.environment(harness.load_of_others(), args.device)
        self.ceilings = ceilings.measure(args.device, tiny=args.tiny)
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.left: Counter[str] = Counter()
        self.said: list[str] = []

    @pytest.fixture
    def measure(self, request: pytest.FixtureRequest) -> Callable[[Benchmark, Case], None]:
        """Times one case; what the tests of ``bench/<op>.py`` ask for."""
        statistics = None
        if request.config.pluginmanager.hasplugin("benchmark"):
            statistics = request.getfixturevalue("benchmark")

        def run(benchmark: Benchmark, case: Case) -> None:
            case = case.tiny() if self.args.tiny else case
            try:
                self._test(benchmark.op)
                with torch.set_grad_enabled(case.backward):
                    samplers, times = self._time(benchmark, case)
            except providers.Refused as error:
                pytest.exit(f"refused: {error}; nothing of this op is written", REFUSED)
            if statistics is not None:
                show(statistics, f"{benchmark.op} {case}", samplers, times)
            self._keep(benchmark)

        return run

    def _test(self, op: str) -> None:
        """The op's tests, once: numbers of an op that is wrong are not taken."""
        if op in self.rows:
            return
        self.rows[op] = []
        if not self.args.untested:
            reason = failing_tests(op, TESTS)
            if reason is not None:
                raise providers.Refused(reason)

    def _time(
        self, benchmark: Benchmark, case: Case
    ) -> tuple[dict[str, Sampler], dict[str, Timing]]:
        device = self.args.device
        rates = None if self.args.tiny else self.ceilings.matmul
        prepared = providers.prepare(benchmark, case, device, rates)
        copies = timers.copies(prepared.args, device)
        samplers = {n: timers.sampler(call, copies, device) for n, call in prepared.calls.items()}
        times = {}
        if samplers:  # else every provider has its reason
            times = harness.interleave(
                samplers, ROUNDS, warmup=0, budget_s=self.args.budget, sample=timers.take
            )
        overheads = {}
        if device == "cuda" and case.name == "small":
            overheads = {
                name: timers.overhead_us(call, prepared.args)
                for name, call in prepared.calls.items()
            }
        self.rows[benchmark.op] += results.rows(
            benchmark, case, prepared, samplers, times, self.ceilings, overheads
        )
        return samplers, times

    def _keep(self, benchmark: Benchmark) -> None:
        """Write the op's rows after its last case, if none was left out."""
        op = benchmark.op
        self.left[op] -= 1
        if self.left[op] == 0:
            note = {"note": "the op's tests were not run"} if self.args.untested else {}
            rows = [note | row | self.environment for row in self.rows[op]]
            results.replace(self.path, op, rows)
            self.said.append(f"{op}: {len(self.rows[op])} rows written to {self.path}")

    @pytest.hookimpl(tryfirst=True)  # before -k leaves cases out
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        self.left.update(item.path.stem for item in items)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for line in self.said or ["nothing written: no op ran with all its cases"]:
            terminalreporter.write_line(line)


def failing_tests(op: str, tests: Path) -> str | None:
    """Run the op's fast tests in a process of their own. None if they pass, else one line."""
    files = sorted(tests.glob(f"test_{op}*.py"))
    if not files:  # an op made of two others is tested with them
        files = [f for f in sorted(tests.glob("test_*.py")) if f"{op}(" in f.read_text()]
    if not files:
        return f"there are no tests of {op} in {tests}"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not slow", "--no-header"]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", *map(str, files)],
        cwd=BENCH.parent,
        capture_output=True,
        text=True,
    )
    if done.returncode == 0:
        return None
    lines = (done.stdout + done.stderr).strip().splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR", "E  "))]
    return f"the tests of {op} do not pass: {(failed or lines or ['no output'])[-1].strip()}"


def show(
    statistics: Any, group: str, samplers: Mapping[str, Sampler], times: Mapping[str, Timing]
) -> None:
    """One line per provider in pytest-benchmark's table and files.

    Its fixture times one function per test; here all providers of a case take turns in one test.
    Each therefore gets a copy of the fixture, under its own name, with the rounds it had.
    """
    for name, timing in times.items():
        line = copy.copy(statistics)
        line.name, line.fullname, line.group = name, f"{statistics.fullname}[{name}]", group
        recorded = line._make_stats(iterations=samplers[name].loops)
        for seconds in timing.seconds:
            recorded.update(seconds * samplers[name].loops)
    statistics._mode = "interleaved"  # used; else a warning says it was not


def benchmarks() -> list[str]:
    """The ops that have a benchmark."""
    return [op for op in registry.ops() if (BENCH / "ops" / f"{op}.py").exists()]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m bench")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("ops", nargs="*", metavar="OP", help=f"of {', '.join(benchmarks())}")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--out", type=Path, default=harness.RESULTS, help="folder of the results")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default: 2)")
    parser.add_argument("--budget", type=float, default=2.0, help="seconds per case (default: 2)")
    parser.add_argument("--untested", action="store_true", help="do not run the ops' tests before")
    parser.add_argument("--tiny", action="store_true", help="sizes that mean nothing; needs --out")
    parser.add_argument("-k", metavar="EXPR", default="", help="a part of the cases, as in pytest")
    args, rest = parser.parse_known_args(argv)
    wrong = _wrong(args)
    if wrong is not None:
        parser.exit(2, f"{parser.prog}: {wrong}\n")
    torch.set_num_threads(args.threads)
    files = [str(BENCH / "ops" / f"{op}.py") for op in args.ops or benchmarks()]
    run = Run(args, args.out / f"{harness.results_name(args.device)}.csv")
    options = ["-v", "-k", args.k, "--no-header", "-p", "no:cacheprovider", "--tb=short"]
    options += ["-W", "ignore::DeprecationWarning"]  # torch's own, while it compiles
    return pytest.main([*options, *_table_options(), *files, *rest], plugins=[run])


def _wrong(args: argparse.Namespace) -> str | None:
    """One line about arguments that cannot be served, or None."""
    unknown = [op for op in args.ops if op not in benchmarks()]
    if unknown:
        return f"OP: expected one of {', '.join(benchmarks())}, got {unknown[0]}"
    if args.device == "cuda" and not torch.cuda.is_available():
        return "--device cuda: there is no CUDA device"
    if args.tiny and args.out.resolve() == harness.RESULTS:
        return "--tiny: its numbers are no results, --out must be another folder"
    return None


def _table_options() -> list[str]:
    try:
        import pytest_benchmark  # noqa: F401
    except ImportError:
        return []
    columns = "--benchmark-columns=min,median,iqr,rounds,iterations"
    return [columns, "--benchmark-sort=name", "--benchmark-group-by=group"]


if __name__ == "__main__":
    sys.exit(main())

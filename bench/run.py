# SPDX-License-Identifier: Apache-2.0
"""The loop of all benchmarks: calls take turns, their times are shown, their rows are kept."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from .benchmark import Benchmark, Measurement, Row
from .report import results
from .timing import machine, turns
from .timing.turns import Timing


class Run:
    """One benchmark from its options to its rows, which go into ``<machine>.json``."""

    def __init__(self, benchmark: Benchmark, args: argparse.Namespace) -> None:
        self.benchmark, self.args = benchmark, args
        self.load = machine.load_of_others()
        self.rows: dict[str, list[Row]] = {}  # by record
        self.status = 0

    def work(self) -> Iterator[tuple[str, Iterable[Measurement]]]:
        """What is measured together, under its name."""
        yield self.benchmark.name, self.benchmark.measurements(self.args)

    def go(self) -> int:
        """Measure it all. Returns the exit status.

        Raises:
            Refused: no number is worth reporting; what was kept before stays.
        """
        with torch.inference_mode(self.benchmark.inference):
            for name, measurements in self.work():
                try:
                    for measurement in measurements:
                        self.keep(measurement, self.measure(measurement))
                    self.end(name)
                except Exception as error:
                    self.failed(name, error)
        return self.status

    def measure(self, measurement: Measurement) -> list[Row]:
        """All calls in turns, the table of their times, and their rows."""
        times: Mapping[str, Timing] = {}
        with torch.set_grad_enabled(measurement.grad):
            if measurement.calls:  # else there is nothing to time, or everybody has a reason
                times = turns.interleave(
                    measurement.calls,
                    measurement.rounds or self.args.rounds,
                    measurement.warmup,
                    budget_s=getattr(self.args, "budget", 0.0),
                    sample=measurement.sample,
                )
            rows = measurement.rows(times)
        say([measurement.title, *table(times, measurement.ours)])
        say(describe(row) for row in rows if not {"times", "median_ms"} & set(row))
        return [{**measurement.facts, **row} for row in rows]

    def keep(self, measurement: Measurement, rows: list[Row]) -> None:
        """The file grows with every measurement."""
        load = {"load_before": self.load} if self.benchmark.timed else {}
        mine = self.rows.setdefault(measurement.record, [])
        mine += [row | load for row in rows]
        if not self.args.dry_run:
            results.record(measurement.record, mine, self.args.out, self.args.device)

    def end(self, name: str) -> None:
        for record, rows in self.rows.items():
            where = "not written" if self.args.dry_run else f"written to {self.args.out}"
            say([f"{record}: {len(rows)} rows {where}"])

    def failed(self, name: str, error: Exception) -> None:
        raise error


def table(times: Mapping[str, Timing], ours: str) -> list[str]:
    """A line per provider: median and quantiles, and how many times as long as ours it took."""
    one = times[ours].quantile(0.5) if ours in times else None
    lines = [
        f"  {'provider':24} {'median ms':>11} {'p20':>9} {'p80':>9} {'rounds':>6} {'/ ours':>8}"
    ]
    for name, timing in times.items():
        median, low, high = (1e3 * timing.quantile(q) for q in (0.5, 0.2, 0.8))
        ratio = f"{median / one / 1e3:8.3g}" if one else f"{'-':>8}"
        count = len(timing.seconds)
        lines.append(f"  {name:24} {median:11.4g} {low:9.4g} {high:9.4g} {count:6} {ratio}")
    return lines if times else []


def describe(row: Mapping[str, Any]) -> str:
    """A row without a table, in words."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        flat |= value if isinstance(value, dict) else {name: value}
    return "  " + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in flat.items())


def say(lines: Iterable[str]) -> None:
    sys.stdout.writelines(f"{line}\n" for line in lines)
    sys.stdout.flush()

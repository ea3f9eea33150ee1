# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: RUF001 (typographic signs in the tables)
"""Targets against what was measured, as Markdown: ``python -m bench.report.table``.

Reads nothing but ``bench/results/*.csv``; prints the tables and puts them into
``docs/benchmarks.md`` between its two markers.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.report import results
from bench.report.results import Row
from bench.timing import turns as harness
from tdc_kernels import registry

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"
START, STOP = "<!-- bench.report.table -->", "<!-- end of bench.report.table -->"
DTYPES = ("float32", "bfloat16")
COMPILED = ("compile", "compile-max-autotune")
NOTHING = "not measured"


@dataclass(frozen=True)
class Target:
    """``ours`` must be at least ``ratio`` times as fast as a provider, or reach this share."""

    op: str
    case: str
    against: str  # a provider, "ceiling", or "best" of all that are not ours
    ratio: float
    words: str

    def measured(self, row: Row, others: Mapping[str, Row]) -> float | None:
        if self.against == "ceiling":
            return float(row["share"])
        other = best(others) if self.against == "best" else others.get(self.against)
        return milliseconds(other) / milliseconds(row) if other and other["median_ms"] else None

    def cell(self, rows: list[Row], dtype: str) -> str:
        group = groups(rows).get((self.op, self.case, dtype, "forward"), {})
        row = ours(group)
        value = self.measured(row, group) if row is not None else None
        if value is None:
            return NOTHING
        number = f"{value:.0%}" if self.against == "ceiling" else f"{value:.3g}×"
        return number if value >= self.ratio else f"{number} (missed)"


TARGETS = (
    Target("frame_similarity", "paper", "release", 10, "≥ 10× `F.cosine_similarity`"),
    Target("frame_similarity", "paper", "ceiling", 0.8, "≥ 80 % of the read bandwidth"),
    Target("segment_scenes", "paper", "release", 10, "≥ 10× windowed loop and sort"),
    Target("anchor_queries", "paper", "release", 2, "≥ 2× pooling and linear per frame"),
    Target("pack_context", "paper", "release", 3, "≥ 3× chain of cat and expand"),
    Target("cross_attention", "paper", "best", 1.4, "≥ 1.4× the best of PyTorch (fp32)"),
    Target("cross_attention", "blip2", "best", 1, "BLIP-2's shape: not slower than the best"),
    *(
        Target(op, "small", "eager", 1, "8 frames: not slower than eager")
        for op in (
            *("frame_similarity", "scene_boundaries", "segment_scenes"),
            *("anchor_queries", "pack_context", "cross_attention"),
        )
    ),
)


def groups(rows: list[Row]) -> dict[tuple[str, ...], dict[str, Row]]:
    """Op, case, dtype and direction -> provider -> row, in the order of the file."""
    found: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        key = tuple(row[column] for column in results.KEY[:-1])
        found.setdefault(key, {})[row["provider"]] = row
    return found


def ours(group: Mapping[str, Row]) -> Row | None:
    """The row of the backend that a call without a name takes."""
    return next((row for row in group.values() if row["automatic"]), None)


def best(group: Mapping[str, Row]) -> Row | None:
    """The fastest of the providers that are not ours."""
    others = [r for n, r in group.items() if n not in registry.BACKENDS and r["median_ms"]]
    return min(others, key=milliseconds, default=None)


def milliseconds(row: Row) -> float:
    return float(row["median_ms"])


def on_gpu(rows: list[Row]) -> bool:
    return any(row["gpu"] for row in rows)


def targets(files: Mapping[str, list[Row]]) -> str:
    """One row per target, two columns per machine."""
    columns: list[tuple[str, list[Row]]] = list(files.items())
    if not any(on_gpu(rows) for rows in files.values()):
        columns.append(("GPU", []))
    head = ["op", "target", *(f"{name}, {dtype}" for name, _ in columns for dtype in DTYPES)]
    lines = [head, ["---"] * len(head)]
    for target in TARGETS:
        only_float32 = target.op == "scene_boundaries"
        cells = [
            "–" if only_float32 and dtype != "float32" else target.cell(rows, dtype)
            for _, rows in columns
            for dtype in DTYPES
        ]
        lines.append([f"`{target.op}`", target.words, *cells])
    return _markdown(lines)


def ratios(rows: list[Row]) -> str:
    """Every case of one machine: our time, and how many times as long the others take."""
    head = ["op", "case", "dtype", "direction", "ours", "backend", "× release", "× eager"]
    head += ["× compiled", "× best", "GB/s", "share"]
    lines = [head, ["---"] * 4 + ["---:", "---"] + ["---:"] * 6]
    for key, group in groups(rows).items():
        row = ours(group)
        if row is None or not row["median_ms"]:
            continue
        compiled = [group[n] for n in COMPILED if n in group and group[n]["median_ms"]]
        others = [group.get("release"), group.get("eager")]
        others += [min(compiled, key=milliseconds, default=None), best(group)]
        cells = [_ratio(other, row) for other in others]
        time = f"{milliseconds(row):.3g} ms"
        lines.append([f"`{key[0]}`", *key[1:], time, row["provider"], *cells])
        lines[-1] += [f"{float(row['gb_s']):.3g}", f"{float(row['share']):.0%}"]
    return _markdown(lines)


def _ratio(other: Row | None, row: Row) -> str:
    if other is None or not other["median_ms"]:
        return "–"
    return f"{milliseconds(other) / milliseconds(row):.3g}"


def skipped(rows: list[Row]) -> str:
    """Who was not timed, and why: a line per case and reason."""
    providers: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if not row["median_ms"]:
            case = f"`{row['op']}` {row['case']} {row['dtype']} {row['direction']}"
            providers.setdefault((case, row["note"]), []).append(row["provider"])
    lines = [f"- {case}, {', '.join(who)}: {why}" for (case, why), who in providers.items()]
    return "\n".join(["Not timed:", "", *lines]) if lines else ""


def _markdown(lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def describe(rows: list[Row]) -> str:
    """Where and when: what a reader needs before the numbers."""
    row = rows[0]
    where = row["gpu"] if on_gpu(rows) else f"{row['threads']} threads, {row['machine']}"
    loads = max(float(r["load"]) for r in rows)
    commits = ", ".join(sorted({r["commit"] for r in rows}))
    return (
        f"{where}; torch {row['torch']}, Python {row['python']}, commit {commits}, "
        f"{max(r['date'] for r in rows)}; load before at most {loads}. Ceilings in the same run: "
        f"{row['read_gb_s']} GB/s reading, {row['copy_gb_s']} GB/s copying."
    )


def section(files: Mapping[str, list[Row]]) -> str:
    """All that stands between the markers."""
    parts = ["## Targets", targets(files)]
    for name, rows in files.items():
        parts += [f"## {name}", describe(rows), ratios(rows), skipped(rows)]
        pictures = sorted((PAGE.parent / "benchmarks").glob(f"{name}-*.png"))
        parts += [f"![{p.stem}](benchmarks/{p.name})" for p in pictures]
    return "\n\n".join(part for part in parts if part)


def insert(page: str, text: str) -> str:
    """``page`` with ``text`` between its markers."""
    before, start, rest = page.partition(START)
    _, stop, after = rest.partition(STOP)
    if not (start and stop):
        raise ValueError(f"the page: expected the markers {START} and {STOP}, got none")
    return f"{before}{START}\n\n{text}\n\n{STOP}{after}"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m bench.report.table")
    parser.add_argument("--results", type=Path, default=harness.RESULTS)
    parser.add_argument("--dry-run", action="store_true", help="print only")
    args = parser.parse_args(argv)
    text = section(results.read_all(args.results))
    sys.stdout.write(text + "\n")
    if not args.dry_run:
        harness.write_whole(PAGE, insert(PAGE.read_text(), text))


if __name__ == "__main__":
    main()

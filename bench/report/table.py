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
from pathlib import Path

from . import results
from .results import DTYPES, Row, markdown, milliseconds, ours, peer
from .targets import PUBLISHED, Found

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"
START, STOP = "<!-- bench.report.table -->", "<!-- end of bench.report.table -->"


def on_gpu(rows: list[Row]) -> bool:
    return any(row["gpu"] for row in rows)


def targets(files: Mapping[str, list[Row]]) -> str:
    """One row per target, two columns per machine."""
    columns = dict(files)
    if not any(on_gpu(rows) for rows in files.values()):
        columns["GPU"] = []
    head = ["op", "target", *(f"{name}, {dtype}" for name in columns for dtype in DTYPES)]
    found = [Found(rows) for rows in columns.values()]
    lines = [
        [target.name, target.words, *(target.cell(f, dtype) for f in found for dtype in DTYPES)]
        for target in PUBLISHED
    ]
    return markdown([head, ["---"] * len(head), *lines])


def ratios(rows: list[Row]) -> str:
    """Every case of one machine: our time, and how many times as long the others take."""
    head = ["op", "case", "dtype", "direction", "ours", "backend", "× release", "× eager"]
    head += ["× compiled", "× best", "GB/s", "share"]
    lines = [head, ["---"] * 4 + ["---:", "---"] + ["---:"] * 6]
    for key, group in results.groups(rows).items():
        row = ours(group)
        if row is None:
            continue
        others = [peer(group, who) for who in ("release", "eager", "compiled", "best")]
        cells = ["–" if r is None else f"{milliseconds(r) / milliseconds(row):.3g}" for r in others]
        time = f"{milliseconds(row):.3g} ms"
        lines.append([f"`{key[0]}`", *key[1:], time, row["provider"], *cells])
        lines[-1] += [f"{float(row['gb_s']):.3g}", f"{float(row['share']):.0%}"]
    return markdown(lines)


def skipped(rows: list[Row]) -> str:
    """Who was not timed, and why: a line per case and reason."""
    providers: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if not row["median_ms"]:
            case = f"`{row['op']}` {row['case']} {row['dtype']} {row['direction']}"
            providers.setdefault((case, row["note"]), []).append(row["provider"])
    lines = [f"- {case}, {', '.join(who)}: {why}" for (case, why), who in providers.items()]
    return "\n".join(["Not timed:", "", *lines]) if lines else ""


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
    parser.add_argument("--results", type=Path, default=results.RESULTS)
    parser.add_argument("--dry-run", action="store_true", help="print only")
    args = parser.parse_args(argv)
    text = section(results.read_all(args.results))
    sys.stdout.write(text + "\n")
    if not args.dry_run:
        results.write(PAGE, insert(PAGE.read_text(), text))


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Pictures of ``bench/results/*.csv``: ``python -m bench.report.plots``."""

from __future__ import annotations

import argparse
import io
import itertools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.lines import Line2D
from PIL import Image

from . import results, table
from .results import Row

FOLDER = table.PAGE.parent / "benchmarks"
DPI = 80
# Color-blind safe; whoever wants more providers adds them here. Others are grey.
COLORS = {
    "release": "#999999",
    "eager": "#e69f00",
    "compile": "#f0e442",
    "compile-max-autotune": "#d55e00",
    "sdpa": "#8c6d31",
    "sdpa-math": "#c7a76c",
    "flex": "#7b4173",
    "reference": "#cc79a7",
    "torch": "#56b4e9",
    "native": "#0072b2",
    "triton": "#009e73",
    "cuda": "#000000",
}
# Of the roofline: the color is the op's there, the marker the provider's.
OPS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#f0e442")
MARKERS = {"ours": "o", "eager": "s", "release": "^"}


def speedups(name: str, rows: list[Row], folder: Path) -> list[Path]:
    """One figure per op: a panel per case and dtype, a bar per provider."""
    paths = []
    for op in dict.fromkeys(row["op"] for row in rows):
        groups = {key: g for key, g in results.groups(rows).items() if key[0] == op}
        cases = list(dict.fromkeys((key[1], key[3]) for key in groups))
        dtypes = [d for d in results.DTYPES if any(key[2] == d for key in groups)]
        figure, axes = plt.subplots(
            len(cases),
            len(dtypes),
            figsize=(5.5 * len(dtypes), 0.5 + 1.75 * len(cases)),
            squeeze=False,
            sharex=True,
        )
        for line, (case, direction) in zip(axes, cases, strict=True):
            for axis, dtype in zip(line, dtypes, strict=True):
                group = groups.get((op, case, dtype, direction), {})
                _bars(axis, f"{case}, {dtype}, {direction}", group)
        figure.suptitle(f"{op}: how many times as fast as the authors' code")
        figure.tight_layout()
        paths.append(_save(figure, folder / f"{name}-{op}.png"))
    return paths


def _bars(axis: Any, title: str, group: Mapping[str, Row]) -> None:
    """Speed-up over the authors' code, over eager where that was not timed; whiskers p20 to p80."""
    timed = {name: row for name, row in group.items() if row["median_ms"]}
    base = next((b for b in ("release", "eager") if b in timed), None)
    if base is None:
        axis.set_axis_off()
        axis.set_title(f"{title}: not measured", fontsize=9)
        return
    if base != "release":
        title += "; 1 = eager"
    one = results.milliseconds(timed[base])
    for place, (name, row) in enumerate(timed.items()):
        value = one / results.milliseconds(row)
        low, high = one / float(row["p80_ms"]), one / float(row["p20_ms"])
        whiskers = [[max(value - low, 0.0)], [max(high - value, 0.0)]]
        color = COLORS.get(name, "#bbbbbb")
        axis.barh(place, value, xerr=whiskers, color=color, error_kw={"lw": 0.8})
        axis.annotate(
            f"{value:.3g}x",
            (max(value, high), place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
        )
    labels = [f"{n} (automatic)" if row["automatic"] else n for n, row in timed.items()]
    axis.set_yticks(range(len(timed)), labels, fontsize=7)
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.margins(x=0.15)
    axis.axvline(1, color="black", lw=0.8)
    axis.set_title(title, fontsize=9)
    axis.tick_params(axis="x", labelsize=7, labelbottom=True)


def roofline(name: str, rows: list[Row], folder: Path) -> Path:
    """Operations per byte against operations per second, under the measured ceilings."""
    dtypes = [d for d in results.DTYPES if any(row["dtype"] == d for row in rows)]
    ops = list(dict.fromkeys(row["op"] for row in rows if float(row["flops"]) > 0))
    figure, axes = plt.subplots(
        1, len(dtypes), figsize=(5.5 * len(dtypes), 4), squeeze=False, sharey=True
    )
    for axis, dtype in zip(axes[0], dtypes, strict=True):
        _roof(axis, next(row for row in rows if row["dtype"] == dtype))
        for color, op in zip(itertools.cycle(OPS), ops):
            _points(axis, color, results.groups(rows).get((op, "paper", dtype, "forward"), {}))
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_title(f"the paper's size, {dtype}, forward", fontsize=10)
        axis.set_xlabel("operations per byte")
        axis.legend(fontsize=7, loc="upper left")
    axes[0][0].set_ylabel("10⁹ operations per second")
    handles = [
        Line2D([], [], ls="", marker="o", color=color, label=op)
        for color, op in zip(itertools.cycle(OPS), ops)
    ]
    handles += [
        Line2D([], [], ls="", marker=marker, color="black", label=provider)
        for provider, marker in MARKERS.items()
    ]
    figure.suptitle(f"{name}: roofline")
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), fontsize=7)
    return _save(figure, folder / f"{name}-roofline.png")


def _roof(axis: Any, row: Row) -> None:
    """Lines not capped by the matrix product: what is none may pass it (bf16 on old CPUs)."""
    peak = float(row["matmul_gflop_s"])
    for style, what in (("-", "read"), ("--", "copy")):
        bandwidth = float(row[f"{what}_gb_s"])
        label = f"{what} {bandwidth:.3g} GB/s"
        axis.plot([0.05, 100], [0.05 * bandwidth, 100 * bandwidth], style, color="0.3", label=label)
    axis.axhline(peak, color="0.3", ls=":", label=f"matrix product {peak:.3g} GFLOP/s")


def _points(axis: Any, color: str, group: Mapping[str, Row]) -> None:
    for provider, marker in MARKERS.items():
        row = results.ours(group) if provider == "ours" else group.get(provider)
        if row is not None and row["median_ms"]:
            intensity = float(row["flops"]) / float(row["bytes"])
            achieved = float(row["flops"]) / results.milliseconds(row) / 1e6
            axis.plot(intensity, achieved, marker, color=color, mec="black", mew=0.5)


def _save(figure: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = io.BytesIO()
    figure.savefig(pixels, dpi=DPI)
    plt.close(figure)
    # A palette halves the file. Maximum coverage keeps the colors of small marks. Neither date nor
    # version inside: the same numbers give the same file.
    palette = Image.open(pixels).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE)
    palette.save(path, optimize=True)
    return path


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m bench.report.plots")
    parser.add_argument("--results", type=Path, default=results.RESULTS)
    parser.add_argument("--out", type=Path, default=FOLDER)
    args = parser.parse_args(argv)
    files = results.read_all(args.results)
    if not files:
        parser.exit(
            1, f"{parser.prog}: there is no CSV in {args.results}, run `make bench` first\n"
        )
    for name, rows in files.items():
        for path in [*speedups(name, rows, args.out), roofline(name, rows, args.out)]:
            sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()

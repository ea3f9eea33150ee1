# SPDX-License-Identifier: Apache-2.0
"""The results file of a machine: one row per op, case, dtype, direction and provider."""

from __future__ import annotations

import csv
import io
import platform
import time
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import tdc_kernels
from bench.benchmark import Benchmark, Case
from bench.providers import Prepared
from bench.timing import turns as harness
from bench.timing.ceilings import Ceilings
from bench.timing.timers import Sampler
from bench.timing.turns import Timing

COLUMNS = (
    *("op", "case", "dtype", "direction", "provider"),
    "automatic",  # "yes": the backend of ours that a call without a name takes here
    *("median_ms", "p20_ms", "p80_ms", "rounds", "loops"),
    "timer",  # wall, events, or graph: events around a captured CUDA graph
    "overhead_us",  # of the host per call; on a GPU, small sizes
    *("bytes", "flops", "gb_s"),
    "share",  # of the ceiling: least possible time over the median
    "bound",  # what sets that least time: memory or matmul
    *("read_gb_s", "copy_gb_s", "matmul_gflop_s"),  # the ceilings, measured in the same run
    "note",  # why a provider was not timed
    *("machine", "gpu", "threads", "load"),
    *("python", "torch", "triton", "tdc_kernels", "commit", "date"),
)
KEY = COLUMNS[:5]

Row = dict[str, str]


def environment(load: float, device: str) -> dict[str, Any]:
    """Where and with what a row was measured."""
    return {
        "machine": harness.machine(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else "",
        "threads": torch.get_num_threads(),
        "load": load,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "tdc_kernels": tdc_kernels.__version__,
        "commit": harness.commit(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def rows(
    benchmark: Benchmark,
    case: Case,
    prepared: Prepared,
    samplers: Mapping[str, Sampler],
    times: Mapping[str, Timing],
    ceilings: Ceilings,
    overheads: Mapping[str, float],
) -> list[dict[str, Any]]:
    """The rows of one case, without the environment."""
    cost = benchmark.cost(case)
    least, bound = ceilings.seconds(cost, case.dtype)
    common = {
        "op": benchmark.op,
        "case": case.name,
        "dtype": case.dtype_name,
        "direction": case.direction,
        "bytes": int(cost.read + cost.written),
        "flops": int(cost.flops),
        "bound": bound,
        "read_gb_s": _short(ceilings.read / 1e9),
        "copy_gb_s": _short(ceilings.copy / 1e9),
        "matmul_gflop_s": _short(ceilings.matmul[case.dtype] / 1e9),
    }
    out = []
    for name, timing in times.items():
        median = timing.quantile(0.5)
        out.append(
            common
            | {
                "provider": name,
                "automatic": "yes" if name == prepared.automatic else "",
                "median_ms": _short(1e3 * median),
                "p20_ms": _short(1e3 * timing.quantile(0.2)),
                "p80_ms": _short(1e3 * timing.quantile(0.8)),
                "rounds": len(timing.seconds),
                "loops": samplers[name].loops,
                "timer": samplers[name].timer,
                "overhead_us": _short(overheads[name]) if name in overheads else "",
                "gb_s": _short((cost.read + cost.written) / median / 1e9),
                "share": _short(least / median),
            }
        )
    return out + [
        common | {"provider": name, "note": reason} for name, reason in prepared.skipped.items()
    ]


def _short(value: float) -> str:
    return f"{value:.5g}"


def read(path: Path) -> list[Row]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def read_all(folder: Path = harness.RESULTS) -> dict[str, list[Row]]:
    """File name without its ending -> rows, machines without a GPU first."""
    files = {path.stem: read(path) for path in sorted(folder.glob("*.csv"))}
    return dict(sorted(files.items(), key=lambda item: any(row["gpu"] for row in item[1])))


def replace(path: Path, op: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Put ``rows`` where the op's rows were; other ops keep theirs. Whole or not at all."""
    kept = [row for row in read(path) if row["op"] != op]
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(sorted([*kept, *rows], key=lambda row: row["op"]))  # stable: cases in order
    harness.write_whole(path, text.getvalue())

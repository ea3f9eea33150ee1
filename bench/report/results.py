# SPDX-License-Identifier: Apache-2.0
"""The results files of a machine. ``<machine>.csv``: the ops, one row per case and provider;
``<machine>.json``: everything else, rows under the name of their record."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tdc.files import whole_file
from tdc_kernels import registry

from ..benchmark import Case, Cost
from ..providers import Prepared
from ..timing.ceilings import Ceilings
from ..timing.machine import environment, machine
from ..timing.timers import Sampler
from ..timing.turns import Timing

RESULTS = Path(__file__).parents[1] / "results"
PROGRESS = "ops.json"  # of a run that goes case by case: what failed or was not reached
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
DTYPES = ("float32", "bfloat16")
COMPILED = ("compile", "compile-max-autotune")

Row = dict[str, str]
Group = Mapping[str, Row]  # provider -> its row of one case


# ---------------------------------------------------------------- rows


def where(load: float, device: str) -> dict[str, Any]:
    """The machine as columns of the CSV."""
    found = environment(device)
    versions = found["versions"]
    return {
        **{name: found[name] for name in ("machine", "threads", "python", "commit", "date")},
        **{"gpu": found["gpu"] or "", "load": load, "torch": versions["torch"]},
        **{"triton": versions["triton"] or "", "tdc_kernels": versions["tdc-kernels"]},
    }


def of_case(op: str, case: Case, cost: Cost, ceilings: Ceilings) -> dict[str, Any]:
    """What the rows of one case have in common."""
    return {
        **{"op": op, "case": case.name, "dtype": case.dtype_name, "direction": case.direction},
        "bytes": int(cost.read + cost.written),
        "flops": int(cost.flops),
        "bound": ceilings.seconds(cost, case.dtype)[1],
        "read_gb_s": _short(ceilings.read / 1e9),
        "copy_gb_s": _short(ceilings.copy / 1e9),
        "matmul_gflop_s": _short(ceilings.matmul[case.dtype] / 1e9),
    }


def of_providers(
    prepared: Prepared,
    samplers: Mapping[str, Sampler],
    times: Mapping[str, Timing],
    cost: Cost,
    least: float,
) -> list[dict[str, Any]]:
    """A row for each provider of a case; ``least``: seconds that the ceilings allow."""
    out = []
    for name, timing in times.items():
        median = timing.quantile(0.5)
        out.append(
            {
                "provider": name,
                "automatic": "yes" if name == prepared.automatic else "",
                "median_ms": _short(1e3 * median),
                "p20_ms": _short(1e3 * timing.quantile(0.2)),
                "p80_ms": _short(1e3 * timing.quantile(0.8)),
                "rounds": len(timing.seconds),
                "loops": samplers[name].loops,
                "timer": samplers[name].timer,
                "gb_s": _short((cost.read + cost.written) / median / 1e9),
                "share": _short(least / median),
            }
        )
    return out + [{"provider": name, "note": why} for name, why in prepared.skipped.items()]


def _short(value: float) -> str:
    return f"{value:.5g}"


def row(times: Mapping[str, Timing], **facts: Any) -> dict[str, Any]:
    """Of the JSON file: the times of all, and how many times as long as ours the others took."""
    one = times["ours"].quantile(0.5)
    return {
        **facts,
        "times": {name: timing.summary() for name, timing in times.items()},
        "ratios": {n: round(t.quantile(0.5) / one, 3) for n, t in times.items() if n != "ours"},
    }


def of_part(part: str, **facts: Any) -> Callable[[Mapping[str, Timing]], list[dict[str, Any]]]:
    """Makes the one row of a measurement."""
    return lambda times: [row(times, part=part, **facts)]


# ---------------------------------------------------------------- files


def read(path: Path) -> list[Row]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def read_all(folder: Path = RESULTS) -> dict[str, list[Row]]:
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
    write(path, text.getvalue())


def merge(path: Path, op: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Put the rows of a case where those of the same case were; other cases keep theirs."""

    def case_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(row[column] for column in KEY[:-1])

    new = {case_of(row) for row in rows}
    kept = [r for r in read(path) if r["op"] == op and case_of(r) not in new]
    replace(path, op, [*kept, *rows])


def record(name: str, rows: list[dict[str, Any]], folder: Path = RESULTS, dev: str = "cpu") -> Path:
    """Write the rows of one record into ``folder/<machine>.json`` and keep the other records.

    The file maps a name to ``{"environment": ..., "rows": [...]}``: each carries the versions and
    the commit it was measured with. The file appears whole or not at all.
    """
    path = folder / f"{machine()}.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    found[name] = {"environment": environment(dev), "rows": rows}
    write(path, json.dumps(found, indent=2, sort_keys=True) + "\n")
    return path


def write(path: Path, text: str) -> None:
    """The file appears whole or not at all; what was there before stays until then."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as part:
        part.write_text(text, newline="")


# ---------------------------------------------------------------- questions to the rows


def groups(rows: Iterable[Row]) -> dict[tuple[str, ...], dict[str, Row]]:
    """Op, case, dtype and direction -> provider -> row, in the order of the file."""
    found: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        key = tuple(row[column] for column in KEY[:-1])
        found.setdefault(key, {})[row["provider"]] = row
    return found


def ours(group: Group) -> Row | None:
    """The timed row of the backend that a call without a name takes."""
    return next((r for r in group.values() if r["automatic"] and r["median_ms"]), None)


def peer(group: Group, who: str) -> Row | None:
    """The timed row of a provider; of "compiled" and "best" (all that are not ours) the fastest."""
    if who == "best":
        names = [name for name in group if name not in registry.BACKENDS]
    else:
        names = [n for n in (COMPILED if who == "compiled" else (who,)) if n in group]
    return min((group[n] for n in names if group[n]["median_ms"]), key=milliseconds, default=None)


def milliseconds(row: Row) -> float:
    return float(row["median_ms"])


def markdown(lines: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)

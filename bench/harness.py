# SPDX-License-Identifier: Apache-2.0
"""Timing in turns, and a results file that says on what machine and with which versions."""

from __future__ import annotations

import json
import logging
import os
import platform
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger(__name__)

RESULTS = Path(__file__).parent / "results"
_VERSIONS = ("torch", "tdc-kernels", "transformers", "triton", "numpy")


@dataclass(frozen=True)
class Timing:
    """Seconds of one provider, one entry per round.

    ``seconds`` is wall clock. ``cpu_seconds`` counts all threads: where it stays far below wall
    clock times threads, somebody else had the cores and the wall clock measured them.
    """

    seconds: tuple[float, ...]
    cpu_seconds: tuple[float, ...] = ()

    def quantile(self, q: float) -> float:
        """The ``q``-quantile (0 to 1), linear between the two nearest rounds."""
        ordered = sorted(self.seconds)
        place = q * (len(ordered) - 1)
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (ordered[high] - ordered[low]) * (place - low)

    def summary(self) -> dict[str, Any]:
        numbers = {
            "median_s": round(statistics.median(self.seconds), 6),
            "p20_s": round(self.quantile(0.2), 6),
            "p80_s": round(self.quantile(0.8), 6),
            "rounds": len(self.seconds),
        }
        if self.cpu_seconds:
            numbers["cpu_median_s"] = round(statistics.median(self.cpu_seconds), 6)
        return numbers


def interleave(
    providers: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 1
) -> dict[str, Timing]:
    """Time every provider once per round.

    The providers take turns, and the order turns by one each round: a clock that drops or a
    neighbour that wakes up hits all of them alike, so that ratios stay honest where seconds do not.

    Args:
        providers: name -> call without arguments.
        rounds: timed rounds, at least 1.
        warmup: untimed rounds before.

    Raises:
        ValueError: no providers, or ``rounds`` below 1.
    """
    if not providers or rounds < 1:
        raise ValueError(
            f"got {len(providers)} providers, {rounds} rounds; expected at least 1 of each"
        )
    names = list(providers)
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for i in range(-warmup, rounds):
        turn = i % len(names)
        for name in names[turn:] + names[:turn]:
            wall, cpu = _time(providers[name])
            if i >= 0:
                measured[name].append((wall, cpu))
                logger.info("round %d of %d: %s %.3f s (cpu %.3f)", i + 1, rounds, name, wall, cpu)
    return {name: Timing(*zip(*pairs, strict=True)) for name, pairs in measured.items()}


def _time(call: Callable[[], object]) -> tuple[float, float]:
    """Wall-clock and CPU seconds of one call."""
    _synchronize()
    start, cpu_start = time.perf_counter(), time.process_time()
    result = call()
    _synchronize()
    elapsed = time.perf_counter() - start, time.process_time() - cpu_start
    del result  # freeing hundreds of megabytes is not part of the work
    return elapsed


def load_of_others() -> float:
    """Processes that wanted a core in the last minute; call it before the first measurement.

    A busy machine does not slow both sides alike: many small calls wait at many more barriers than
    one large one. The load is written into the results, and a warning says when it matters.
    """
    load = round(os.getloadavg()[0], 2)
    if load > 0.5:
        logger.warning("load is %.1f before the first measurement: ratios will be off", load)
    return load


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def environment() -> dict[str, Any]:
    """Machine, versions, commit and threads of this run."""
    return {
        "machine": machine(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _VERSIONS},
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def machine() -> str:
    """CPU model and number of cores as a file name: ``amd-epyc-2-cores``. Never the host's name."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE)
        model = found.group(1) if found else model
    model = re.sub(r"\((r|tm|c)\)", " ", model, flags=re.IGNORECASE)
    slug = re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")
    return f"{slug}-{os.cpu_count()}-cores"


def commit() -> str:
    """Short hash of the checked-out commit; ``+changes`` if files differ from it."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        return f"{head}+changes" if _git("status", "--porcelain") else head
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*args: str) -> str:
    done = subprocess.run(
        ["git", *args], cwd=Path(__file__).parent, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def record(benchmark: str, rows: list[dict[str, Any]], folder: Path = RESULTS) -> Path:
    """Write one benchmark's rows into ``folder/<machine>.json`` and keep the other benchmarks.

    The file maps a benchmark's name to ``{"environment": ..., "rows": [...]}``: each carries the
    versions and the commit it was measured with. The file appears whole or not at all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{machine()}.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    results[benchmark] = {"environment": environment(), "rows": rows}
    with tempfile.NamedTemporaryFile("w", dir=folder, suffix=".part", delete=False) as part:
        part.write(json.dumps(results, indent=2, sort_keys=True) + "\n")
    os.chmod(part.name, 0o644)  # temporary files are private by default
    os.replace(part.name, path)
    return path

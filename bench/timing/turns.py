# SPDX-License-Identifier: Apache-2.0
"""Timing in turns, and a results file that says on what machine and with which versions."""

from __future__ import annotations

import itertools
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

RESULTS = Path(__file__).parents[1] / "results"
MOST_ROUNDS = 200  # of a run that goes by a budget: enough for quantiles
_SOURCES = (":/", ":(exclude,top)bench/results", ":(exclude,top)docs/benchmarks*")
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
    providers: Mapping[str, Any],
    rounds: int,
    warmup: int = 1,
    *,
    budget_s: float = 0.0,
    sample: Callable[[Any], tuple[float, float]] | None = None,
) -> dict[str, Timing]:
    """Time every provider once per round.

    The providers take turns: a clock that drops or a neighbour that wakes up hits all of them
    alike, so that ratios stay honest where seconds do not. Every second round runs backwards and
    every two rounds the order turns by one, so that nobody always follows the same provider, whose
    instructions and data it would find in the caches.

    Args:
        providers: name -> call without arguments, or whatever ``sample`` takes.
        rounds: timed rounds, at least 1.
        warmup: untimed rounds before.
        budget_s: goes on after ``rounds`` until this many seconds were spent, warm-up included.
        sample: how a provider's turn is timed: wall-clock and CPU seconds of it. None: one call.

    Raises:
        ValueError: no providers, or ``rounds`` below 1.
    """
    if not providers or rounds < 1:
        raise ValueError(
            f"got {len(providers)} providers, {rounds} rounds; expected at least 1 of each"
        )
    names = list(providers)
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    stop = time.perf_counter() + budget_s
    for i in itertools.count(-warmup):
        if i >= rounds and (time.perf_counter() >= stop or i >= MOST_ROUNDS):
            break
        turn = i // 2 % len(names)
        for name in (names[turn:] + names[:turn])[:: -1 if i % 2 else 1]:
            wall, cpu = (sample or timed)(providers[name])
            if i >= 0:
                measured[name].append((wall, cpu))
                logger.info("round %d: %s %.3f s (cpu %.3f)", i + 1, name, wall, cpu)
    return {name: Timing(*zip(*pairs, strict=True)) for name, pairs in measured.items()}


def timed(call: Callable[[], object], loops: int = 1) -> tuple[float, float]:
    """Wall-clock and CPU seconds of one call, the mean of ``loops`` in a row."""
    synchronize()
    start, cpu_start = time.perf_counter(), time.process_time()
    for _ in range(loops):
        result = call()
    synchronize()
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu_start
    del result  # freeing hundreds of megabytes is not part of the work
    return wall / loops, cpu / loops


def load_of_others() -> float:
    """Processes that wanted a core in the last minute; call it before the first measurement.

    A busy machine does not slow both sides alike: many small calls wait at many more barriers than
    one large one. The load is written into the results, and a warning says when it matters.
    """
    load = round(os.getloadavg()[0], 2)
    if load > 0.5:
        logger.warning("load is %.1f before the first measurement: ratios will be off", load)
    return load


def synchronize() -> None:
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
    return f"{_slug(model)}-{os.cpu_count()}-cores"


def results_name(device: str) -> str:
    """Name of the results of this machine's CPU, or of its GPU: the two are never mixed."""
    return _slug(torch.cuda.get_device_name()) if device == "cuda" else machine()


def _slug(name: str) -> str:
    name = re.sub(r"\((r|tm|c)\)", " ", name, flags=re.IGNORECASE)
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def commit() -> str:
    """Short hash of the checked-out commit; ``+changes`` if files other than results differ."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        return f"{head}+changes" if _git("status", "--porcelain", "--", *_SOURCES) else head
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
    path = folder / f"{machine()}.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    results[benchmark] = {"environment": environment(), "rows": rows}
    write_whole(path, json.dumps(results, indent=2, sort_keys=True) + "\n")
    return path


def write_whole(path: Path, text: str) -> None:
    """The file appears whole or not at all; what was there before stays until then."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, suffix=".part", delete=False, newline=""
    ) as part:
        part.write(text)
    try:
        os.chmod(part.name, 0o644)  # temporary files are private by default
        os.replace(part.name, path)
    finally:
        Path(part.name).unlink(missing_ok=True)

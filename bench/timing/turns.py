# SPDX-License-Identifier: Apache-2.0
"""Timing in turns: whoever is compared takes part in every round."""

from __future__ import annotations

import itertools
import logging
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

logger = logging.getLogger(__name__)

MOST_ROUNDS = 200  # of a run that goes by a budget: enough for quantiles


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


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()

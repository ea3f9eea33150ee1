# SPDX-License-Identifier: Apache-2.0
"""Seconds per stage: the pipeline names its stages, a listener adds them up.

    with measure() as times:
        model.generate(**processor(...))
    times.seconds  # {"decode video": 0.41, "DINOv2": 1.93, ...}

A stage inside another one is counted once: its time is taken off the outer stage.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch


def now() -> float:
    """Seconds on a clock that waits for the GPUs: their kernels run on behind the host's."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


@dataclass
class StageTimes:
    """Seconds per stage, in the order in which the stages first began."""

    seconds: dict[str, float] = field(default_factory=dict)
    _open: list[str] = field(default_factory=list, repr=False)
    _since: float = field(default=0.0, repr=False)

    def _charge(self) -> None:
        """Give the time since the last change to the innermost open stage."""
        instant = now()
        if self._open:
            self.seconds[self._open[-1]] += instant - self._since
        self._since = instant

    def begin(self, name: str) -> None:
        self._charge()
        self._open.append(name)
        self.seconds.setdefault(name, 0.0)

    def end(self) -> None:
        self._charge()
        self._open.pop()


_listener: StageTimes | None = None


@contextmanager
def measure() -> Iterator[StageTimes]:
    """Collect the times of all stages run inside (by any thread: use it from one)."""
    global _listener
    before, _listener = _listener, StageTimes()
    try:
        yield _listener
    finally:
        _listener = before


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Mark a part of the pipeline; free of charge while nobody measures."""
    times = _listener
    if times is None:
        yield
        return
    times.begin(name)
    try:
        yield
    finally:
        times.end()

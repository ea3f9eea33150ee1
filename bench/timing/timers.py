# SPDX-License-Identifier: Apache-2.0
"""One timed turn of a provider: wall clock on the CPU, events and graphs on a GPU."""

from __future__ import annotations

import functools
import logging
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from . import turns

logger = logging.getLogger(__name__)

SAMPLE_S = 5e-3  # a turn lasts at least this long: the clock and one wake-up stay below 1 %
MOST_LOOPS = 100_000
MOST_COPIES = 64  # of inputs smaller than the cache; beyond, they are too small to matter
GRAPH_BELOW_S = 1e-3  # calls shorter than this are captured: launching them would be measured

Call = Callable[..., object]


@dataclass(frozen=True)
class Sampler:
    """A provider ready to be timed."""

    run: Callable[[], tuple[float, float]]  # wall-clock (or device) and CPU seconds of one call
    timer: str  # "wall", "events" or "graph"
    loops: int  # calls in a turn


def take(sampler: Sampler) -> tuple[float, float]:
    """For ``turns.interleave``."""
    return sampler.run()


def sampler(call: Call, copies: Sequence[tuple[Any, ...]], device: str) -> Sampler:
    """``call`` on its arguments, of which a GPU gets several ``copies``."""
    if device == "cuda":
        return _cuda_sampler(call, copies)
    bound = functools.partial(call, *copies[0])
    seconds = turns.timed(bound)[0]  # also the warm-up
    if seconds < 10 * SAMPLE_S:  # one disturbed call must not decide
        seconds = min(turns.timed(bound)[0] for _ in range(5))
        seconds = min(turns.timed(bound, loops=_loops(seconds))[0] for _ in range(2))
    loops = _loops(seconds)
    return Sampler(lambda: turns.timed(bound, loops), "wall", loops)


def _loops(seconds: float) -> int:
    return min(MOST_LOOPS, max(1, math.ceil(SAMPLE_S / max(seconds, 1e-9))))


# ---------------------------------------------------------------- GPU


def copies(args: tuple[Any, ...], device: str) -> list[tuple[Any, ...]]:
    """The arguments, on a GPU so often that walking through them finds none in the L2 cache."""
    if device != "cuda":
        return [args]
    cache = torch.cuda.get_device_properties().L2_cache_size
    return [args, *(_clone(args) for _ in range(num_copies(size(args), cache) - 1))]


def size(args: Sequence[Any]) -> int:
    """Bytes of the tensors."""
    return sum(a.numel() * a.element_size() for a in args if isinstance(a, torch.Tensor))


def num_copies(size: int, cache: int) -> int:
    """How many inputs of ``size`` bytes are more than twice the ``cache``."""
    return min(MOST_COPIES, 2 * cache // max(size, 1) + 1)


def _clone(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        a.detach().clone().requires_grad_(a.requires_grad) if isinstance(a, torch.Tensor) else a
        for a in args
    )


def _cuda_sampler(call: Call, copies: Sequence[tuple[Any, ...]]) -> Sampler:
    def walk() -> None:
        for args in copies:
            call(*args)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # capture wants the warm-up on another stream
        for _ in range(3):
            walk()
    torch.cuda.current_stream().wait_stream(stream)
    seconds = _events(walk, 1) / len(copies)
    step, timer = walk, "events"
    if seconds < GRAPH_BELOW_S:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                walk()
            step, timer = graph.replay, "graph"
        except Exception as error:  # the host waits for the device, or memory cannot be captured
            torch.cuda.synchronize()
            logger.info("no CUDA graph: %s", str(error).splitlines()[0])
    step()
    passes = _loops(_events(step, 1))
    loops = passes * len(copies)
    return Sampler(lambda: (_events(step, passes) / loops, 0.0), timer, loops)


def _events(step: Callable[[], object], passes: int) -> float:
    """Device seconds of all passes."""
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(passes):
        step()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / 1e3


def overhead_us(call: Call, args: tuple[Any, ...], calls: int = 20, rounds: int = 15) -> float:
    """Microseconds of the host per call while the device is not waited for."""
    seconds = []
    for _ in range(rounds):
        turns.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            call(*args)
        seconds.append((time.perf_counter() - start) / calls)
    turns.synchronize()
    return 1e6 * statistics.median(seconds)

# SPDX-License-Identifier: Apache-2.0
"""What this machine can do at most, measured in the same run as what is compared with it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from ..benchmark import Cost
from . import timers, turns

ROUNDS = 5
ENOUGH_S = 20e-3  # a matrix product that takes this long is large enough on the CPU


@dataclass(frozen=True)
class Ceilings:
    """Bytes and operations per second, the best of several simple ways."""

    read: float
    copy: float  # counting what is read and what is written
    matmul: Mapping[torch.dtype, float]

    def seconds(self, cost: Cost, dtype: torch.dtype) -> tuple[float, str]:
        """The least time for a call, and whether memory or matrix products set it.

        What is written moves at the rate of a copy together with as much of what is read; the rest
        moves at the rate of reading.
        """
        copied = cost.written + min(cost.read, cost.written)
        memory = copied / self.copy + max(cost.read - cost.written, 0.0) / self.read
        compute = cost.matmul_flops / self.matmul[dtype]
        return max((memory, "memory"), (compute, "matmul"))


def measure(device: str, *, tiny: bool = False) -> Ceilings:
    """Seconds of work; on the CPU with the threads torch is set to."""
    read, copy = _bandwidths(device, 2**16 if tiny else 2**30 if device == "cuda" else 2**27)
    return Ceilings(read, copy, matmul_rates(device, tiny=tiny))


def _bandwidths(device: str, values: int) -> tuple[float, float]:
    """Of reading and of copying ``values`` floats."""
    source = torch.ones(values, device=device)
    target = torch.empty_like(source)
    reading = {
        "sum": lambda: torch.sum(source),
        "amax": lambda: torch.amax(source),
        "dot": lambda: torch.dot(source, source),
        "norm": lambda: torch.linalg.vector_norm(source),
    }
    copying = {
        "copy": lambda: target.copy_(source),
        "add": lambda: torch.add(source, 1, out=target),
    }
    size = float(timers.size([source]))
    return size / _best(reading, device), 2 * size / _best(copying, device)


def matmul_rates(device: str, *, tiny: bool = False) -> dict[torch.dtype, float]:
    return {dtype: _matmul(dtype, device, tiny) for dtype in (torch.float32, torch.bfloat16)}


def _matmul(dtype: torch.dtype, device: str, tiny: bool) -> float:
    """Operations per second of a square product, doubled in width until it takes long enough."""
    n = 64 if tiny else 8192 if device == "cuda" else 256
    while True:
        a, b = torch.randn(2, n, n, device=device).to(dtype)
        ways = {  # without bf16 units one took 15 times as long as the other
            "mm": functools.partial(torch.mm, a, b),
            "linear": functools.partial(torch.nn.functional.linear, a, b),
        }
        seconds = _best(ways, device)
        if tiny or device == "cuda" or seconds >= ENOUGH_S or n >= 4096:
            return 2 * n**3 / seconds
        n *= 2


def _best(ways: Mapping[str, Callable[[], object]], device: str) -> float:
    """Seconds of the fastest round of the fastest way: a ceiling is what was reached once."""
    samplers = {name: timers.sampler(call, [()], device) for name, call in ways.items()}
    times = turns.interleave(samplers, ROUNDS, sample=timers.take)
    return min(min(timing.seconds) for timing in times.values())

# SPDX-License-Identifier: Apache-2.0
"""What is measured. A `Benchmark` gives `Measurement`s, each of them calls that take turns.

The ops of ``bench/ops`` are one benchmark, whose measurements are an op's cases; an `Op` says what
its inputs are, who takes part, and the bytes and operations that a call needs.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tdc_kernels as tk
from tdc_kernels import registry

from .timing.turns import Timing, timed

Row = dict[str, Any]

QUERIES = 16  # K, tokens of a compressed frame
WINDOW = 8  # frames per anchor at most, as released
QFORMER_WIDTH = 768

# Frames of every video. The ragged batch has as many frames as the paper's one video.
PAPER = (224,)
SMALL = (8,)
LONG = (2048,)
RAGGED = (6, 9, 29, 6, 17, 12, 25, 8, 5, 14, 28, 7, 10, 20, 16, 12)


class Refused(RuntimeError):
    """No number of this run is worth reporting."""


@dataclass(frozen=True)
class Measurement:
    """Calls that take turns. Whoever makes one has compared what the calls compute."""

    title: str
    record: str  # of the results file, which the rows go to: an op, or a run with its sizes
    calls: Mapping[str, Any]  # provider -> call without arguments, or whatever ``sample`` takes
    rows: Callable[[Mapping[str, Timing]], list[Row]]
    facts: Mapping[str, Any] = field(default_factory=dict)  # of all rows
    ours: str = "ours"  # the provider that the others are compared with
    sample: Callable[[Any], tuple[float, float]] = timed  # wall-clock and CPU seconds of a turn
    rounds: int | None = None  # None: what was asked for
    warmup: int = 1
    grad: bool = False


@dataclass(frozen=True)
class Benchmark:
    """What ``python -m bench NAME`` runs; the first line of its module says what it is."""

    name: str
    measurements: Callable[[argparse.Namespace], Iterator[Measurement]] = lambda args: iter(())
    options: Callable[[argparse.ArgumentParser], object] = lambda parser: None
    wrong: Callable[[argparse.Namespace], str | None] = lambda args: None
    devices: tuple[str, ...] = ("cpu", "cuda")
    timed: bool = True  # it takes rounds and threads
    rounds: int | None = 3  # None: ``measurements`` knows
    inference: bool = True  # in torch.inference_mode
    run: Callable[[Benchmark, argparse.Namespace], Any] | None = None  # None: `bench.run.Run`


# ---------------------------------------------------------------- ops


@dataclass(frozen=True)
class Case:
    """Sizes of one measurement. Its name, dtype and direction identify it among an op's cases."""

    name: str
    lengths: tuple[int, ...]  # frames of every video
    tokens: int  # per frame
    width: int
    dtype: torch.dtype = torch.float32
    backward: bool = False  # forward, and the gradient of the output's sum

    def __str__(self) -> str:
        return f"{self.name}-{self.dtype_name}-{self.direction}"

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def direction(self) -> str:
        return "forward+backward" if self.backward else "forward"

    @property
    def frames(self) -> int:
        return sum(self.lengths)

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    @property
    def boundaries(self) -> int:
        """S - 1 = 24 cuts per video; 3 where videos have a dozen frames."""
        return 24 if min(self.lengths) > 25 else 3

    @property
    def cu_frames(self) -> tuple[int, ...]:
        return tuple(sum(self.lengths[:i]) for i in range(len(self.lengths) + 1))

    def tiny(self) -> Case:
        """The same case in milliseconds: a check of the harness, never a result."""
        lengths = self.lengths if len(self.lengths) > 1 else (min(self.frames, 40),)
        return replace(self, lengths=lengths, tokens=20, width=32)


@dataclass(frozen=True)
class Cost:
    """What a call cannot do without: every input read once, every output written once.

    Intermediate results count nothing, whoever materialises them: that is the point of the ratio.
    """

    read: float  # bytes
    written: float
    flops: float  # all additions and multiplications
    matmul_flops: float = 0.0  # those of matrix products, which have a ceiling of their own


@dataclass(frozen=True)
class Op:
    """Everything that is asked of ``bench/ops/<op>.py``.

    Every provider is a function of the same arguments, those of the op. Peers are "release" (the
    authors' way), "eager" (the best natural PyTorch) and, where a compiler prefers another way of
    writing it than eager mode does, "compile".
    """

    name: str
    cases: tuple[Case, ...]
    arguments: Callable[[Case, str], tuple[Any, ...]]  # case and device
    ours: Callable[..., Any]  # the op's arguments and ``backend=``
    peers: Callable[[Case], Mapping[str, Callable[..., Any]]]
    cost: Callable[[Case], Cost]
    wrt: tuple[int, ...] = ()  # differentiable arguments, by position
    # Temporary memory as a multiple of the arguments', to leave out what would not fit.
    workspace: Mapping[str, float] = field(default_factory=dict)
    # The reference, in pieces where it does not fit. None: the backend "reference".
    expected: Callable[..., Any] | None = None
    # Reference output -> what a peer that has another form of output should return.
    as_peer: Mapping[str, Callable[[Case, Tensor], Tensor]] = field(default_factory=dict)
    # The output's gradient by case, peer's name and output. None: ones.
    cotangent: Callable[[Case, str, Tensor], Tensor] | None = None


def op_names() -> list[str]:
    """The ops that have a benchmark."""
    return [op for op in registry.ops() if (Path(__file__).parent / "ops" / f"{op}.py").exists()]


def ops(names: Iterable[str] | None = None) -> list[Op]:
    """The named ones, or all."""
    chosen = op_names() if names is None else names
    return [importlib.import_module(f"{__package__}.ops.{name}").BENCHMARK for name in chosen]


def standard_cases(
    tokens: int, width: int, *, backward: bool = True, others: tuple[int, ...] = ()
) -> tuple[Case, ...]:
    """The paper's size, a short, a long video and a ragged batch; ``others``: further widths."""
    cases = []
    for dtype in (torch.float32, torch.bfloat16):
        cases += [Case("paper", PAPER, tokens, width, dtype)]
        cases += [Case("paper", PAPER, tokens, width, dtype, True)] if backward else []
        cases += [Case(f"paper-{other}", PAPER, tokens, other, dtype) for other in others]
        cases += [Case("small", SMALL, tokens, width, dtype)]
        cases += [Case("ragged", RAGGED, tokens, width, dtype)]
    # In fp32 its inputs alone would take 7 GB.
    cases += [Case("long", LONG, tokens, width, torch.bfloat16)]
    return tuple(cases)


# ---------------------------------------------------------------- inputs


@functools.lru_cache
def cuts(case: Case) -> tuple[tuple[int, ...], ...]:
    """First frames of the new scenes of every video: uneven scenes, the same in every run."""
    generator = torch.Generator().manual_seed(0)
    return tuple(
        tuple(sorted((torch.randperm(n - 1, generator=generator)[: case.boundaries] + 1).tolist()))
        for n in case.lengths
    )


@functools.lru_cache
def plan(case: Case) -> tk.ContextPlan:
    rows = torch.tensor(cuts(case), dtype=torch.int32)  # [B, S]
    return tk.plan_context(rows, case.cu_frames, WINDOW, case.tokens, QUERIES)


@functools.lru_cache
def windows(case: Case) -> tuple[tuple[int, int], ...]:
    """Of every window its anchor's frame number and how many other frames it has."""
    others = torch.bincount(plan(case).dynamic_anchor, minlength=len(plan(case).anchors))
    return tuple(zip(plan(case).anchors.tolist(), others.tolist(), strict=True))


def prefix_sums(case: Case, device: str) -> Tensor | None:
    """``cu_frames`` of a batch, None for one video."""
    if len(case.lengths) == 1:
        return None
    return torch.tensor(case.cu_frames, dtype=torch.int32, device=device)


def normal(shape: tuple[int, ...], dtype: torch.dtype, device: str, seed: int) -> Tensor:
    """Random normal ``[N, ...]`` that repeats after 4M values: drawing gigabytes takes long."""
    period = min(shape[0], max(2, 2**22 // max(math.prod(shape[1:]), 1)) + 1)
    generator = torch.Generator(device).manual_seed(seed)
    drawn = torch.randn(period, *shape[1:], generator=generator, device=device).to(dtype)
    out = torch.empty(shape, dtype=dtype, device=device)
    for first in range(0, shape[0], period):
        out[first : first + period] = drawn[: shape[0] - first]
    return out


def video(case: Case, device: str) -> Tensor:
    """``[F, T, C]`` features whose scenes are so unlike that every dtype finds the same cuts."""
    starts = {
        cu + cut for cu, row in zip(case.cu_frames, cuts(case), strict=False) for cut in (0, *row)
    }
    generator = torch.Generator(device).manual_seed(1)
    size = (case.tokens, case.width)
    noise = [0.3 * torch.randn(size, generator=generator, device=device) for _ in range(5)]
    out = torch.empty(case.frames, *size, dtype=case.dtype, device=device)
    for t in range(case.frames):
        if t in starts:
            look = torch.randn(size, generator=generator, device=device)
        out[t] = look + noise[t % 5]
    return out

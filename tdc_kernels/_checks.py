# SPDX-License-Identifier: Apache-2.0
"""Argument checks of the public functions: one line naming the argument, what came, what was
expected. Shapes and dtypes hold on meta and fake tensors and inside torch.compile. Values are
looked at where they are at hand, on the CPU; a look at a GPU's would wait for it. There kernels
read and write nothing outside, whatever the numbers, and TDC_CHECK_VALUES=1 has them looked at."""

from __future__ import annotations

import os
from itertools import pairwise
from typing import Any

import torch

CHECK_VALUES = os.environ.get("TDC_CHECK_VALUES") == "1"
_INTS = (torch.int32, torch.int64)
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def describe(x: Any) -> str:
    """``float32 [4, 3]`` for a tensor, the type's name for anything else."""
    if isinstance(x, torch.Tensor):
        return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
    return f"{type(x).__name__} {x!r}" if isinstance(x, int | float | str) else type(x).__name__


def floating(name: str, x: Any, shape: str, ndim: int | None = None, least: int = 0) -> None:
    """``x`` must be a floating tensor with ``ndim`` (or at ``least`` that many) dimensions, of a
    dtype that all kernels have: PyTorch's 8-bit floats hardly compute and promote to nothing."""
    if not isinstance(x, torch.Tensor) or not x.is_floating_point():
        raise TypeError(f"{name}: expected a floating tensor {shape}, got {describe(x)}")
    if x.dtype not in _FLOATS:
        expected = ", ".join(str(dtype).removeprefix("torch.") for dtype in _FLOATS)
        raise TypeError(f"{name}: expected one of {expected}, got {describe(x)}")
    if (ndim is not None and x.ndim != ndim) or x.ndim < least:
        raise ValueError(f"{name}: expected shape {shape}, got {describe(x)}")


def at_hand(x: torch.Tensor) -> bool:
    """True where values may be looked at: of a plain tensor on the CPU, or on any device where
    TDC_CHECK_VALUES says so."""
    if torch.compiler.is_compiling() or type(x) is not torch.Tensor or x.device.type == "meta":
        return False
    if torch._C._functorch.is_functorch_wrapped_tensor(x):
        return False
    return CHECK_VALUES or x.device.type == "cpu"


def numbers(name: str, x: torch.Tensor, low: int, high: int) -> None:
    """All of ``x`` must be from ``low`` to ``high``, where they are at hand."""
    if not at_hand(x) or x.numel() == 0:
        return
    least, most = (int(n) for n in x.aminmax())
    if least < low or most > high:
        expected = f"numbers from {low} to {high}" if low <= high else "none"
        raise ValueError(f"{name}: expected {expected}, got {least} to {most}")


def integers(name: str, x: Any, shape: str, device: torch.device) -> torch.Tensor:
    """``x``, which must be a 1-D int32 or int64 tensor on ``device``, without gaps in memory."""
    if not isinstance(x, torch.Tensor) or x.dtype not in _INTS:
        raise TypeError(f"{name}: expected an int32 or int64 tensor {shape}, got {describe(x)}")
    if x.ndim != 1:
        raise ValueError(f"{name}: expected shape {shape}, got {describe(x)}")
    same_device(name, x, device)
    return x.contiguous()


def same_device(name: str, x: torch.Tensor, device: torch.device) -> None:
    if x.device != device:
        raise ValueError(f"{name}: expected a tensor on {device}, got one on {x.device}")


def same_dtype(name: str, x: torch.Tensor, dtype: torch.dtype, other: str) -> None:
    if x.dtype != dtype:
        expected = str(dtype).removeprefix("torch.")
        raise TypeError(f"{name}: expected {expected} like {other}, got {describe(x)}")


def count(name: str, x: Any, least: int) -> None:
    """``x`` must be an integer of at ``least`` that much."""
    if isinstance(x, bool) or not isinstance(x, int | torch.SymInt):
        raise TypeError(f"{name}: expected an integer >= {least}, got {describe(x)}")
    if x < least:
        raise ValueError(f"{name}: expected an integer >= {least}, got {x}")


def prefix_sums(cu_frames: Any, frames: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Check ``cu_frames``, whose last entry must be one of ``frames``, and return it as int32
    without gaps in memory."""
    cu_frames = integers("cu_frames", cu_frames, "[B+1]", device)
    if cu_frames.shape[0] < 1:
        raise ValueError("cu_frames: expected [B+1] with at least one entry, got none")
    if at_hand(cu_frames):
        values = cu_frames.tolist()
        rising = all(a <= b for a, b in pairwise(values))
        if values[0] != 0 or not rising or values[-1] not in frames:
            total = " or ".join(map(str, frames))
            raise ValueError(
                f"cu_frames: expected prefix sums from 0 to {total}, got {_short(values)}"
            )
    return cu_frames.to(torch.int32)


def _short(values: list[int]) -> str:
    return str(values) if len(values) <= 8 else f"[{values[0]}, {values[1]}, ..., {values[-1]}]"


def shape(name: str, x: torch.Tensor, dim: int, size: int, what: str) -> None:
    """``x`` must have ``size`` entries along ``dim``, because ``what`` says so."""
    if x.shape[dim] != size:
        raise ValueError(
            f"{name}: expected size {size} in dimension {dim} ({what}), got {describe(x)}"
        )


def threshold(x: Any) -> float | None:
    """A real number or None, as float."""
    if x is None:
        return None
    if isinstance(x, bool) or not isinstance(x, int | float):
        raise TypeError(f"threshold: expected a number or None, got {describe(x)}")
    if x != x:
        raise ValueError("threshold: expected a number or None, got NaN")
    return float(x)

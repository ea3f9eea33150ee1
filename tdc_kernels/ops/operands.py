# SPDX-License-Identifier: Apache-2.0
"""What the Triton operators ask of their arguments where they are called past the public functions:
the shapes, dtypes and devices that their kernels' addresses are computed from."""

from __future__ import annotations

import torch

from tdc_kernels import _checks


def dense(name: str, x: torch.Tensor, shape: str, ndim: int, like: torch.Tensor) -> None:
    """Floating, on the device of ``like``, without gaps along the last dimension."""
    _checks.floating(name, x, shape, ndim=ndim)
    _checks.same_device(name, x, like.device)
    if x.numel() > 0 and x.shape[-1] > 1 and x.stride(-1) != 1:
        raise ValueError(f"{name}: expected {shape} with dense rows, got strides {x.stride()}")


def sized(name: str, x: torch.Tensor, shape: tuple[int, ...], like: torch.Tensor) -> None:
    """Of exactly this shape, on the device of ``like``."""
    if tuple(x.shape) != shape:
        raise ValueError(f"{name}: expected shape {list(shape)}, got {_checks.describe(x)}")
    _checks.same_device(name, x, like.device)


def compressed(x: torch.Tensor, like: torch.Tensor) -> None:
    """``[M, K, D]``, to be packed with the rows of ``like``."""
    dense("compressed", x, "[M, K, D]", 3, like)
    _checks.same_dtype("compressed", x, like.dtype, "the other rows")
    _checks.shape("compressed", x, 2, like.shape[1], "the other rows' D")


def begin_wide(*pieces: torch.Tensor) -> bool:
    """True where all rows begin at multiples of 16 bytes."""
    return all(
        x.data_ptr() % 16 == 0 and all(s * x.element_size() % 16 == 0 for s in x.stride()[:-1])
        for x in pieces
    )


def int32(name: str, x: torch.Tensor, shape: str, like: torch.Tensor) -> None:
    _checks.integers(name, x, shape, like.device)
    _checks.same_dtype(name, x, torch.int32, "the plan's and the videos' numbers")


def videos(cu_frames: torch.Tensor | None, frames: int, like: torch.Tensor) -> int:
    """How many there are: one without ``cu_frames``."""
    if cu_frames is None:
        return 1
    int32("cu_frames", cu_frames, "[B+1]", like)
    count = cu_frames.shape[0] - 1
    if count < 0 or (count == 0 and frames > 0):
        raise ValueError(f"cu_frames: expected prefix sums of {frames} frames, got {count + 1}")
    return count


def index(x: torch.Tensor | None, frames: int, like: torch.Tensor) -> int:
    """How many rows there are: one per frame without ``index``."""
    if x is None:
        return frames
    _checks.integers("index", x, "[A]", like.device)
    if x.shape[0] > 0 and frames == 0:
        raise ValueError("index: expected none, as there is no frame")
    return x.shape[0]

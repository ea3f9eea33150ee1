# SPDX-License-Identifier: Apache-2.0
"""Tensors between pages that nobody may touch: an access outside ends the process, or the launch
of a CUDA kernel that runs on the CPU."""

from __future__ import annotations

import ctypes
import math
import mmap
from typing import Any

import torch

PAGE = mmap.PAGESIZE
_libc = ctypes.CDLL(None, use_errno=True)
_kept: list[Any] = []  # as long as the process


def empty(shape: tuple[int, ...], dtype: torch.dtype, at_end: bool) -> torch.Tensor:
    """Uninitialised, with an untouchable page right behind it, or right before."""
    size = math.prod(shape) * dtype.itemsize
    inner = max(-(-size // PAGE), 1) * PAGE
    memory = mmap.mmap(-1, inner + 2 * PAGE)
    view = (ctypes.c_char * len(memory)).from_buffer(memory)
    _kept.append((memory, view))
    for page in (0, inner + PAGE):
        address = ctypes.addressof(view) + page
        assert _libc.mprotect(ctypes.c_void_p(address), PAGE, 0) == 0
    if size == 0:
        return torch.empty(shape, dtype=dtype)
    offset = PAGE + (inner - size if at_end else 0)
    flat = torch.frombuffer(memory, dtype=dtype, count=math.prod(shape), offset=offset)
    return flat.view(shape)


def guarded(x: Any, at_end: bool) -> Any:
    """A copy of a tensor; anything else as it is."""
    if not isinstance(x, torch.Tensor):
        return x
    return empty(tuple(x.shape), x.dtype, at_end).copy_(x)

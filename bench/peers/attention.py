# SPDX-License-Identifier: Apache-2.0
"""Cross-attention over a frame's visual and audio tokens, as one writes it in PyTorch: gather the
frames, concatenate, project keys and values, attend. All take the arguments of the op."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


def _frames(visual: Tensor, audio: Tensor | None, index: Tensor) -> Tensor:
    """``[M, N, D]``."""
    return visual[index] if audio is None else torch.cat([visual[index], audio[index]], dim=1)


def _heads(x: Tensor, num_heads: int) -> Tensor:
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)  # [M, H, L, d]


def _written_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1) @ v


def _with(
    attend: Callable[[Tensor, Tensor, Tensor], Tensor],
    query: Tensor,
    visual: Tensor,
    audio: Tensor | None,
    w_key: Tensor,
    b_key: Tensor,
    w_value: Tensor,
    b_value: Tensor,
    num_heads: int,
    index: Tensor,
) -> Tensor:
    x = _frames(visual, audio, index)
    key, value = F.linear(x, w_key, b_key), F.linear(x, w_value, b_value)
    out = attend(_heads(query, num_heads), _heads(key, num_heads), _heads(value, num_heads))
    return out.transpose(1, 2).flatten(2)


def eager(*args: Any) -> Tensor:
    return _with(_written_out, *args)


def sdpa(*args: Any) -> Tensor:
    """Whichever kernel PyTorch chooses."""
    return _with(F.scaled_dot_product_attention, *args)


def sdpa_math(*args: Any) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return sdpa(*args)


@functools.cache
def _flex() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def flex(*args: Any) -> Tensor:
    return _with(lambda q, k, v: _flex()(q, k, v), *args)


def release(
    query: Tensor,
    visual: Tensor,
    audio: Tensor | None,
    w_key: Tensor,
    b_key: Tensor,
    w_value: Tensor,
    b_value: Tensor,
    num_heads: int,
    index: Tensor,
    rows: int,
) -> Tensor:
    """The authors' way: one window of at most ``rows`` dynamic frames after the other."""
    weights = (w_key, b_key, w_value, b_value, num_heads)
    parts = [
        eager(q, visual, audio, *weights, i)
        for q, i in zip(query.split(rows), index.split(rows), strict=True)
    ]
    return torch.cat(parts)

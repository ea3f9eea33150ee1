# SPDX-License-Identifier: Apache-2.0
"""``cross_attention``: query groups read their frame's visual and audio tokens."""

from __future__ import annotations

import torch

from tdc_kernels import _checks, registry
from tdc_kernels.ops.autocast import autocast_dtype, without_autocast
from tdc_kernels.ops.cross_attention import absorbed, reference

OP = "cross_attention"
registry.define(
    OP,
    "(Tensor query, Tensor visual, Tensor? audio, Tensor w_key, Tensor? b_key, Tensor w_value,"
    " Tensor? b_value, int num_heads, Tensor? index=None, Tensor? visual_lengths=None,"
    " Tensor? audio_lengths=None) -> Tensor",
)
registry.implement(OP, "reference", reference.cross_attention)
registry.implement(
    OP,
    "torch",
    absorbed.cross_attention,
    requires=absorbed.requires,
    pays=absorbed.pays,
)


def cross_attention(
    query: torch.Tensor,
    visual: torch.Tensor,
    audio: torch.Tensor | None = None,
    *,
    w_key: torch.Tensor,
    b_key: torch.Tensor | None,
    w_value: torch.Tensor,
    b_value: torch.Tensor | None,
    num_heads: int,
    index: torch.Tensor | None = None,
    visual_lengths: torch.Tensor | None = None,
    audio_lengths: torch.Tensor | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """Multi-head attention of M query groups, each over the tokens of one frame.

    ``softmax(q K^T / sqrt(d)) V`` per head, with ``K = x w_key^T + b_key`` and
    ``V = x w_value^T + b_value`` of the frame's visual and audio tokens x, one softmax over both.
    It is the cross-attention of the paper's Q-Former, all frames of all videos in one call.

    Args:
        query: ``[M, Q, H*d]``, already projected.
        visual: ``[F, Nv, D]``.
        audio: ``[F, Na, D]`` or None.
        w_key, w_value: ``[H*d, D]``.
        b_key, b_value: ``[H*d]`` or None.
        num_heads: H, a divisor of ``H*d``.
        index: int32 or int64 ``[M]``, the frame each row attends; None: ``M == F`` and row m
            attends frame m. Rows that share a frame share its keys and values.
        visual_lengths, audio_lengths: int32 or int64 ``[F]``, tokens beyond are ignored, whatever
            they hold; None: all count. A row whose frame has no token at all gives zeros.
        backend: a backend's name; None chooses.

    All floating tensors have one dtype; under autocast they are cast to the autocast dtype (fp64
    excepted). Softmax and both sums are taken in fp32 (fp64 for fp64).

    Returns:
        ``[M, Q, H*d]`` in the dtype computed in. Differentiable in all floating arguments.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or shape.
        RuntimeError: the backend asked for cannot run this call.
    """
    _check(query, visual, audio, w_key, b_key, w_value, b_value, num_heads)
    _check_indices(query, visual, audio, index, visual_lengths, audio_lengths)
    device = query.device.type
    dtype = autocast_dtype(device)
    floats = (query, visual, audio, w_key, b_key, w_value, b_value)
    tail = (num_heads, index, visual_lengths, audio_lengths)
    if dtype is not None and query.dtype != torch.float64:
        cast = [x.to(dtype) if x is not None else None for x in floats]
        with without_autocast(device):
            return registry.call(OP, backend, *cast, *tail)
    names = ("query", "visual", "audio", "w_key", "b_key", "w_value", "b_value")
    for name, x in zip(names, floats, strict=True):
        if x is not None:
            _checks.same_dtype(name, x, query.dtype, "query")
    return registry.call(OP, backend, *floats, *tail)


def _check(query, visual, audio, w_key, b_key, w_value, b_value, num_heads) -> None:
    """Kinds and shapes of the floating arguments."""
    _checks.floating("query", query, "[M, Q, H*d]", ndim=3)
    _checks.floating("visual", visual, "[F, Nv, D]", ndim=3)
    _checks.same_device("visual", visual, query.device)
    _checks.count("num_heads", num_heads, 1)
    width, depth = query.shape[2], visual.shape[2]
    if width % num_heads != 0:
        raise ValueError(f"num_heads: expected a divisor of query's width {width}, got {num_heads}")
    if audio is not None:
        _checks.floating("audio", audio, "[F, Na, D]", ndim=3)
        _checks.shape("audio", audio, 0, visual.shape[0], "visual's F")
        _checks.shape("audio", audio, 2, depth, "visual's D")
        _checks.same_device("audio", audio, query.device)
    for name, weight in (("w_key", w_key), ("w_value", w_value)):
        _checks.floating(name, weight, "[H*d, D]", ndim=2)
        _checks.shape(name, weight, 0, width, "query's H*d")
        _checks.shape(name, weight, 1, depth, "visual's D")
        _checks.same_device(name, weight, query.device)
    for name, bias in (("b_key", b_key), ("b_value", b_value)):
        if bias is not None:
            _checks.floating(name, bias, "[H*d]", ndim=1)
            _checks.shape(name, bias, 0, width, "query's H*d")
            _checks.same_device(name, bias, query.device)


def _check_indices(query, visual, audio, index, visual_lengths, audio_lengths) -> None:
    """Which row attends which frame, and how much of it."""
    if index is None:
        _checks.shape("query", query, 0, visual.shape[0], "visual's F, as index is None")
    else:
        _checks.integers("index", index, "[M]", query.device)
        _checks.shape("index", index, 0, query.shape[0], "query's M")
    if audio is None and audio_lengths is not None:
        raise ValueError("audio_lengths: expected None without audio, got a tensor")
    for name, lengths in (("visual_lengths", visual_lengths), ("audio_lengths", audio_lengths)):
        if lengths is not None:
            _checks.integers(name, lengths, "[F]", query.device)
            _checks.shape(name, lengths, 0, visual.shape[0], "visual's F")

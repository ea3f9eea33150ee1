# SPDX-License-Identifier: Apache-2.0
"""``anchor_queries``: what a window's static frame asks of the others."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from tdc_kernels import _checks, registry
from tdc_kernels.ops.anchor_queries import reference
from tdc_kernels.ops.autocast import autocast_dtype, without_autocast
from tdc_kernels.ops.backends import implement_fused
from tdc_kernels.ops.once import once

OP = "anchor_queries"


def fake(tokens, num_queries, index=None, dtype=None) -> torch.Tensor:
    anchors = tokens.shape[0] if index is None else index.shape[0]
    return tokens.new_empty((anchors, num_queries, tokens.shape[2]), dtype=dtype or tokens.dtype)


def fake_backward(grad, frames, length, index, dtype) -> torch.Tensor:
    return grad.new_empty((frames, length, grad.shape[2]), dtype=dtype)


# The pooling alone, [F, L, D] with dense rows -> [A, K, D] in `dtype` (None: that of the tokens).
# The linear map is the library's: fused, every tile of its output would read the tokens again.
registry.define(
    OP,
    "(Tensor tokens, SymInt num_queries, Tensor? index=None, ScalarType? dtype=None) -> Tensor",
    fake,
    backward="(Tensor grad, SymInt frames, SymInt length, Tensor? index, ScalarType dtype)"
    " -> Tensor",
    fake_backward=fake_backward,
)
registry.implement(OP, "reference", reference.anchor_queries)
implement_fused(OP)


class AnchorQueries(torch.autograd.Function):
    """The gradient of the compiled backends: a token's share of every bin it is in."""

    @staticmethod
    def forward(
        ctx: Any,
        backend: str,
        tokens: torch.Tensor,
        num_queries: int,
        index: torch.Tensor | None,
        dtype: torch.dtype | None,
    ) -> torch.Tensor:
        ctx.backend = backend
        ctx.frames, ctx.length, _ = tokens.shape
        ctx.dtype = tokens.dtype
        ctx.save_for_backward(index)
        return registry.entry(OP, backend).handle(tokens, num_queries, index, dtype)

    @staticmethod
    @once(OP)
    def backward(ctx: Any, grad: torch.Tensor):
        (index,) = ctx.saved_tensors
        operator: Any = registry.entry(OP, ctx.backend).backward
        return None, operator(grad, ctx.frames, ctx.length, index, ctx.dtype), None, None, None


def pool(
    tokens: torch.Tensor,
    num_queries: int,
    index: torch.Tensor | None,
    dtype: torch.dtype | None,
    backend: str | None,
) -> torch.Tensor:
    """``[A, K, D]`` in ``dtype`` (None: that of the tokens), of checked arguments."""
    if tokens.shape[2] > 1 and tokens.stride(2) != 1:
        tokens = tokens.contiguous()
    args = tokens, num_queries, index, dtype
    return registry.call(OP, backend, *args, function=AnchorQueries)


def anchor_queries(
    tokens: torch.Tensor,
    num_queries: int,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    index: torch.Tensor | None = None,
    *,
    backend: str | None = None,
) -> torch.Tensor:
    """Pool the anchors' tokens to ``num_queries`` rows and map them to the Q-Former's width.

    Row j is the mean of tokens ``floor(jL/K) .. ceil((j+1)L/K) - 1`` (adaptive average pooling:
    uneven bins that may share a token, right for ``L < K`` too), times ``weight``, plus ``bias``.

    Args:
        tokens: ``[F, L, D]`` floating, ``L >= 1``, any strides (rows with gaps between their values
            are copied first).
        num_queries: K ``>= 1``.
        weight: ``[Dq, D]`` in the dtype of ``tokens``, or None for no map. Under autocast it is
            cast to the autocast dtype, and with it the output.
        bias: ``[Dq]`` like ``weight``, or None; needs a ``weight``.
        index: int32 or int64 ``[A]``, the anchors' frame numbers, in any order, each as often as
            wanted; None for every frame. On a GPU nobody looks at the numbers (but see
            ``TDC_CHECK_VALUES``): one beyond the frames reads the nearest that there is.
        backend: a backend's name; None chooses.

    Returns:
        ``[A, K, D]`` in the dtype of ``tokens``, or ``[A, K, Dq]`` in that of ``weight``. Pooled in
        fp32 (fp64 for fp64). Differentiable in ``tokens`` (once), ``weight`` and ``bias``.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or shape.
        RuntimeError: the backend asked for cannot run this call.
    """
    _checks.floating("tokens", tokens, "[F, L, D]", ndim=3)
    _checks.count("num_queries", num_queries, 1)
    if tokens.shape[1] < 1:
        raise ValueError(f"tokens: expected [F, L, D] with L >= 1, got {_checks.describe(tokens)}")
    if index is not None:
        index = _checks.integers("index", index, "[A]", tokens.device)
        _checks.numbers("index", index, 0, tokens.shape[0] - 1)
    if weight is None:
        if bias is not None:
            raise ValueError("bias: expected None without weight, got a tensor")
        return pool(tokens, num_queries, index, None, backend)

    _checks.floating("weight", weight, "[Dq, D]", ndim=2)
    _checks.shape("weight", weight, 1, tokens.shape[2], "tokens' D")
    _checks.same_device("weight", weight, tokens.device)
    if bias is not None:
        _checks.floating("bias", bias, "[Dq]", ndim=1)
        _checks.shape("bias", bias, 0, weight.shape[0], "weight's Dq")
        _checks.same_device("bias", bias, tokens.device)
    dtype = autocast_dtype(tokens.device.type)
    if dtype is not None and tokens.dtype != torch.float64:
        weight = weight.to(dtype)
        bias = bias.to(dtype) if bias is not None else None
        with without_autocast(tokens.device.type):
            return F.linear(pool(tokens, num_queries, index, dtype, backend), weight, bias)
    _checks.same_dtype("weight", weight, tokens.dtype, "tokens")
    if bias is not None:
        _checks.same_dtype("bias", bias, tokens.dtype, "tokens")
    return F.linear(pool(tokens, num_queries, index, None, backend), weight, bias)

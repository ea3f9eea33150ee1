# SPDX-License-Identifier: Apache-2.0
"""``anchor_queries``: what a window's static frame asks of the others."""

from __future__ import annotations

import torch

from tdc_kernels import _checks, registry
from tdc_kernels.ops.anchor_queries import reference
from tdc_kernels.ops.autocast import autocast_dtype, without_autocast

OP = "anchor_queries"
registry.define(
    OP,
    "(Tensor tokens, int num_queries, Tensor? weight=None, Tensor? bias=None, Tensor? index=None)"
    " -> Tensor",
)
registry.implement(OP, "reference", reference.anchor_queries)


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
        tokens: ``[F, L, D]`` floating, ``L >= 1``.
        num_queries: K ``>= 1``.
        weight: ``[Dq, D]`` in the dtype of ``tokens``, or None for no map. Under autocast it is
            cast to the autocast dtype, and with it the output.
        bias: ``[Dq]`` like ``weight``, or None; needs a ``weight``.
        index: int32 or int64 ``[A]``, the anchors' frame numbers; None for every frame.
        backend: a backend's name; None chooses.

    Returns:
        ``[A, K, D]`` in the dtype of ``tokens``, or ``[A, K, Dq]`` in that of ``weight``. Pooled in
        fp32 (fp64 for fp64). Differentiable in ``tokens``, ``weight`` and ``bias``.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or shape.
        RuntimeError: the backend asked for cannot run this call.
    """
    _checks.floating("tokens", tokens, "[F, L, D]", ndim=3)
    _checks.count("num_queries", num_queries, 1)
    if tokens.shape[1] < 1:
        raise ValueError(f"tokens: expected [F, L, D] with L >= 1, got {_checks.describe(tokens)}")
    if index is not None:
        _checks.integers("index", index, "[A]", tokens.device)
    if weight is None:
        if bias is not None:
            raise ValueError("bias: expected None without weight, got a tensor")
        return registry.call(OP, backend, tokens, num_queries, None, None, index)

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
            return registry.call(OP, backend, tokens, num_queries, weight, bias, index)
    _checks.same_dtype("weight", weight, tokens.dtype, "tokens")
    if bias is not None:
        _checks.same_dtype("bias", bias, tokens.dtype, "tokens")
    return registry.call(OP, backend, tokens, num_queries, weight, bias, index)

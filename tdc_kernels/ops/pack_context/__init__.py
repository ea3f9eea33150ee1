# SPDX-License-Identifier: Apache-2.0
"""``pack_context``: the pieces of the temporal dynamic context, laid out as the plan says."""

from __future__ import annotations

import torch

from tdc_kernels import _checks, registry
from tdc_kernels.ops.pack_context import reference
from tdc_kernels.plan import ContextPlan

OP = "pack_context"
registry.define(OP, "(Tensor static, Tensor compressed, Tensor separator, Tensor source) -> Tensor")
registry.implement(OP, "reference", reference.pack_context)


def pack_context(
    static: torch.Tensor,
    compressed: torch.Tensor,
    separator: torch.Tensor,
    plan: ContextPlan,
    *,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Static tokens, separators and compressed tokens of every video in one packed sequence.

    Per window: the static frame's tokens, a separator, and for every other frame its K compressed
    tokens, L2-normalised over D (``x / max(|x|, 1e-12)``), and a separator; cut as planned.

    Args:
        static: ``[Ns, D]``, the tokens of ``plan.anchors`` back to back (``plan.cu_static``);
            ``[0, D]`` in a plan without static frames.
        compressed: ``[M, K, D]``, one row per ``plan.dynamic``, not normalised.
        separator: ``[D]``.
        plan: from ``plan_context``; tensors on another device are copied over (``plan.to(device)``
            once is cheaper than here every time).
        backend: a backend's name; None chooses.

    Returns:
        ``(packed, cu_context)``: ``[N, D]`` in the promoted dtype of the three inputs (normalised
        in fp32, or fp64), and int32 ``[B+1]``. Differentiable in the three.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or shape, or pieces unlike the plan's.
        RuntimeError: the backend asked for cannot run this call.
    """
    _checks.floating("static", static, "[Ns, D]", ndim=2)
    _checks.floating("compressed", compressed, "[M, K, D]", ndim=3)
    _checks.floating("separator", separator, "[D]", ndim=1)
    if not isinstance(plan, ContextPlan):
        raise TypeError(f"plan: expected a ContextPlan, got {type(plan).__name__}")
    _checks.shape("compressed", compressed, 2, static.shape[1], "static's D")
    _checks.shape("separator", separator, 0, static.shape[1], "static's D")
    _checks.shape("compressed", compressed, 0, plan.dynamic.shape[0], "plan.dynamic")
    _checks.shape("compressed", compressed, 1, plan.num_queries, "plan.num_queries")
    _checks.same_device("compressed", compressed, static.device)
    _checks.same_device("separator", separator, static.device)
    if not torch.compiler.is_compiling() and plan.cu_static.device.type == "cpu":
        _checks.shape("static", static, 0, int(plan.cu_static[-1]), "plan.cu_static")
    source = plan.source.to(static.device)
    packed = registry.call(OP, backend, static, compressed, separator, source)
    return packed, plan.cu_context.to(static.device)

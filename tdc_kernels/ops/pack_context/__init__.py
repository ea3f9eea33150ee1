# SPDX-License-Identifier: Apache-2.0
"""``pack_context``: the pieces of the temporal dynamic context, laid out as the plan says."""

from __future__ import annotations

from typing import Any

import torch

from tdc_kernels import _checks, registry
from tdc_kernels.ops.backends import implement_fused
from tdc_kernels.ops.once import once
from tdc_kernels.ops.pack_context import reference
from tdc_kernels.plan import ContextPlan, copied

OP = "pack_context"


def fake(static, compressed, separator, source, position, separators) -> torch.Tensor:
    return static.new_empty((source.shape[0], static.shape[1]))


def fake_backward(
    grad, compressed, position, separators, for_static, for_compressed, for_separator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    frames, queries, width = compressed.shape
    return (
        grad.new_empty((position.shape[0] - frames * queries if for_static else 0, width)),
        grad.new_empty((frames if for_compressed else 0, queries, width)),
        grad.new_empty((width if for_separator else 0,)),
    )


# All of one dtype; `static` and `compressed` have dense last dimensions, `separator` is contiguous.
# `position` and `separators` are the plan's way back, which the forward has no use for. A gradient
# that nobody wants comes back empty.
registry.define(
    OP,
    "(Tensor static, Tensor compressed, Tensor separator, Tensor source, Tensor position, "
    "Tensor separators) -> Tensor",
    fake,
    backward="(Tensor grad, Tensor compressed, Tensor position, Tensor separators, "
    "bool for_static, bool for_compressed, bool for_separator) -> (Tensor, Tensor, Tensor)",
    fake_backward=fake_backward,
)
registry.implement(OP, "reference", reference.pack_context)
implement_fused(OP)


class PackContext(torch.autograd.Function):
    """The gradient of the compiled backends: one launch, along the plan's way back."""

    @staticmethod
    def forward(
        ctx: Any,
        backend: str,
        static: torch.Tensor,
        compressed: torch.Tensor,
        separator: torch.Tensor,
        source: torch.Tensor,
        position: torch.Tensor,
        separators: torch.Tensor,
    ) -> torch.Tensor:
        ctx.backend = backend
        ctx.save_for_backward(compressed, position, separators)
        operator = registry.entry(OP, backend).handle
        return operator(static, compressed, separator, source, position, separators)

    @staticmethod
    @once(OP)
    def backward(ctx: Any, grad: torch.Tensor):
        wanted = ctx.needs_input_grad[1:4]
        operator: Any = registry.entry(OP, ctx.backend).backward
        found = operator(grad, *ctx.saved_tensors, *wanted)
        pieces = (g if needed else None for g, needed in zip(found, wanted, strict=True))
        return None, *pieces, None, None, None


def dense_rows(x: torch.Tensor) -> torch.Tensor:
    """``x`` if its last dimension is dense, else a copy."""
    return x if x.shape[-1] <= 1 or x.stride(-1) == 1 else x.contiguous()


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
        compressed: ``[M, K, D]``, one row per ``plan.dynamic``, not normalised. Where the plan has
            ``compressed_lengths``, only the first so many of a frame's K are packed; the others
            have a gradient of zero.
        separator: ``[D]``.
        plan: from ``plan_context``; tensors on another device are copied over, by one copy
            (``plan.to(device)`` once is cheaper than here every time, and needed where a CUDA graph
            is captured).
        backend: a backend's name; None chooses.

    The three may have any strides; ``static`` and ``compressed`` are copied first where D is not
    dense, or where they do not have the promoted dtype.

    Returns:
        ``(packed, cu_context)``: ``[N, D]`` in the promoted dtype of the three inputs (normalised
        in fp32, or fp64), and int32 ``[B+1]``. Differentiable in the three, once (the reference
        backend: any number of times).

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
    rows = plan.position.shape[0] - compressed.shape[0] * compressed.shape[1]
    _checks.shape("static", static, 0, rows, "plan.cu_static")
    device = static.device
    _checks.same_device("compressed", compressed, device)
    _checks.same_device("separator", separator, device)
    dtype = torch.promote_types(static.dtype, compressed.dtype)
    dtype = torch.promote_types(dtype, separator.dtype)
    *way, cu_context = _way(plan, device)
    packed = registry.call(
        OP,
        backend,
        dense_rows(static.to(dtype)),
        dense_rows(compressed.to(dtype)),
        separator.to(dtype).contiguous(),
        *way,
        function=PackContext,
    )
    return packed, cu_context


def _way(plan: ContextPlan, device: torch.device) -> list[torch.Tensor]:
    """Source, position, separators and cu_context on ``device``, checked where they are at hand."""
    tokens, rows = plan.source.shape[0], plan.position.shape[0]
    _checks.numbers("plan.source", plan.source, 0, rows)  # the last row is the separator
    _checks.numbers("plan.position", plan.position, -1, tokens - 1)
    _checks.numbers("plan.separators", plan.separators, 0, tokens - 1)
    way = [plan.source, plan.position, plan.separators, plan.cu_context]
    far = device.type == "cuda" and any(x.device != device for x in way)
    if far and not torch.compiler.is_compiling() and torch.cuda.is_current_stream_capturing():
        raise ValueError(f"plan: expected one on {device} while a graph is captured, plan.to(...)")
    return copied(way, device)

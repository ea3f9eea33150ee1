# SPDX-License-Identifier: Apache-2.0
"""``cross_attention``: query groups read their frame's visual and audio tokens."""

from __future__ import annotations

from typing import Any

import torch

from tdc_kernels import _checks, registry
from tdc_kernels.ops.autocast import autocast_dtype, without_autocast
from tdc_kernels.ops.backends import implement_fused
from tdc_kernels.ops.cross_attention import absorbed, backward, projected, reference, strategy
from tdc_kernels.ops.cross_attention.checks import check, check_numbers, check_rows
from tdc_kernels.ops.once import once

OP = "cross_attention"
ARGUMENTS = (
    "Tensor query, Tensor visual, Tensor? audio, Tensor w_key, Tensor? b_key, Tensor w_value,"
    " Tensor? b_value, int num_heads, Tensor? index, Tensor? visual_lengths,"
    " Tensor? audio_lengths, Tensor? mask, Tensor? w_key_audio, Tensor? w_value_audio, bool absorb"
)
# The inputs that have a gradient of their own, as positions in ARGUMENTS. A key bias has none: it
# adds one number to all of a query's scores, which the softmax takes away again.
DIFFERENTIABLE = (0, 1, 2, 3, 5, 6, 12, 13)
TOKENS, WEIGHTS, B_KEY = (1, 2), (3, 5, 6, 12, 13), 4


def fake(query, *rest) -> torch.Tensor:
    return query.new_empty(query.shape)


def fake_backward(grad, *args) -> tuple[torch.Tensor, ...]:
    *inputs, tokens, weights = args
    wanted = {0, *(TOKENS if tokens else ()), *(WEIGHTS if weights else ())}
    return tuple(
        x.new_empty(x.shape) if x is not None and i in wanted else grad.new_empty((0,))
        for i, x in ((i, inputs[i]) for i in DIFFERENTIABLE)
    )


# The gradients in the order of DIFFERENTIABLE; empty ones for inputs that are not there, and, if
# not asked for, for `tokens` and for `weights`.
registry.define(
    OP,
    f"({ARGUMENTS}) -> Tensor",
    fake,
    backward=f"(Tensor grad, {ARGUMENTS}, bool tokens, bool weights)"
    f" -> ({', '.join(['Tensor'] * len(DIFFERENTIABLE))})",
    fake_backward=fake_backward,
)
registry.implement(OP, "reference", reference.cross_attention)


def _torch(*args: Any) -> torch.Tensor:
    *rest, absorb = args
    return (absorbed if absorb else projected).cross_attention(*rest)


registry.implement(OP, "torch", _torch)
# The forward is C++; the gradient's matrix products are as large as PyTorch's own.
implement_fused(OP, native_pays=strategy.native_pays, native_backward=backward.backward)


class CrossAttention(torch.autograd.Function):
    """The gradient of the compiled backends. It keeps the inputs and nothing else: keys, values and
    probabilities are computed again."""

    @staticmethod
    def forward(ctx: Any, backend: str, *args: Any) -> torch.Tensor:
        ctx.backend = backend
        ctx.plain = [None if isinstance(a, torch.Tensor) else a for a in args]
        ctx.save_for_backward(*(a if isinstance(a, torch.Tensor) else None for a in args))
        return registry.entry(OP, backend).handle(*args)

    @staticmethod
    @once(OP)
    def backward(ctx: Any, grad: torch.Tensor):
        pairs = zip(ctx.saved_tensors, ctx.plain, strict=True)
        args = [plain if tensor is None else tensor for tensor, plain in pairs]
        needs = ctx.needs_input_grad[1:]
        operator: Any = registry.entry(OP, ctx.backend).backward
        tokens, weights = (any(needs[i] for i in which) for which in (TOKENS, WEIGHTS))
        found = operator(grad, *args, tokens, weights)
        grads: list[torch.Tensor | None] = [None] * len(args)
        for i, x in zip(DIFFERENTIABLE, found, strict=True):
            grads[i] = x if needs[i] else None
        if needs[B_KEY]:
            grads[B_KEY] = torch.zeros_like(args[B_KEY])
        return None, *grads


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
    mask: torch.Tensor | None = None,
    w_key_audio: torch.Tensor | None = None,
    w_value_audio: torch.Tensor | None = None,
    strategy: str | None = None,
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
            they hold; None: all count. A row whose frame has no token at all gives zeros. On a
            GPU nobody looks at lengths and ``index`` (but see ``TDC_CHECK_VALUES``): what is not
            there is taken for the nearest that is.
        mask: bool ``[F, Nv + Na]``, True = may be seen; None: all. Hidden tokens get no weight;
            unlike those beyond the lengths, they must be finite.
        w_key_audio, w_value_audio: ``[H*d, Da]`` for audio tokens ``[F, Na, Da]`` of a width of
            their own; None: audio tokens have the width and the weights of the visual ones.
        strategy: ``"project"`` (keys and values by matrix product, then attention) or ``"absorb"``
            (the weights absorbed into the queries; keys and values never exist); None: the one that
            was measured to be faster for this device, dtype and shape. The results are the same.
        backend: a backend's name; None chooses.

    Query, weights and biases have one dtype; tokens of another one are converted as they are read.
    Under autocast all are cast to the autocast dtype (fp64 excepted). Softmax and both sums are
    taken in fp32 (fp64 for fp64).

    Returns:
        ``[M, Q, H*d]`` in the dtype computed in. Differentiable (once) in all floating arguments.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or shape.
        RuntimeError: the backend asked for cannot run this call.
    """
    weights = (w_key, b_key, w_value, b_value)
    of_audio = (w_key_audio, w_value_audio)
    check(query, visual, audio, *weights, num_heads, *of_audio)
    check_rows(query, visual, audio, index, visual_lengths, audio_lengths, mask)
    check_numbers(visual, audio, index, visual_lengths, audio_lengths)
    device = query.device.type
    dtype = autocast_dtype(device)
    args = (query, visual, audio, *weights, num_heads, index, visual_lengths, audio_lengths, mask)
    if dtype is not None and query.dtype != torch.float64:
        args = tuple(_cast(a, dtype) for a in args)
        of_audio = tuple(_cast(a, dtype) for a in of_audio)
        with without_autocast(device):
            return _call(backend, *args, *of_audio, strategy=strategy)
    names = ("w_key", "b_key", "w_value", "b_value", "w_key_audio", "w_value_audio")
    for name, x in zip(names, (*weights, *of_audio), strict=True):
        if x is not None:
            _checks.same_dtype(name, x, query.dtype, "query")
    return _call(backend, *args, *of_audio, strategy=strategy)


def _cast(x: Any, dtype: torch.dtype) -> Any:
    return x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x


def _call(backend: str | None, *args: Any, strategy: str | None) -> torch.Tensor:
    absorb = _absorb(strategy, args)
    return registry.call(OP, backend, *args, absorb, function=CrossAttention)


def _absorb(wanted: str | None, args: tuple[Any, ...]) -> bool:
    if wanted is None:
        return strategy.absorbs(*args)
    if wanted not in strategy.NAMES:
        expected = ", ".join(map(repr, strategy.NAMES))
        raise ValueError(f"strategy: expected None or one of {expected}, got {wanted!r}")
    return wanted == "absorb"

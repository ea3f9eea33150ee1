# SPDX-License-Identifier: Apache-2.0
"""Backwards that have no derivative of their own, and say so."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

Backward = Callable[..., tuple[Any, ...]]


class Refuse(torch.autograd.Function):
    """``x``, whose derivative in ``sources`` is an error."""

    @staticmethod
    def forward(ctx: Any, op: str, x: torch.Tensor, *sources: torch.Tensor) -> torch.Tensor:
        ctx.op = op
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(
            f"{ctx.op}: this backend differentiates once, backend='reference' any number of times"
        )


def once(op: str) -> Callable[[Backward], Backward]:
    """Decorator of an ``autograd.Function``'s backward.

    PyTorch's ``once_differentiable`` knows the incoming gradients alone: a penalty on the gradient
    of a sum, where those are ones, had no derivative in the inputs and no error. This one is an
    error for whatever the backward saved, too.
    """

    def decorate(backward: Backward) -> Backward:
        @functools.wraps(backward)
        def wrapped(ctx: Any, *grads: Any) -> tuple[Any, ...]:
            with torch.no_grad():
                found = backward(ctx, *grads)
            if torch.compiler.is_compiling() or not torch.is_grad_enabled():
                return found  # AOTAutograd has an error for it
            given = (*grads, *ctx.saved_tensors)
            sources = [x for x in given if x is not None and x.requires_grad]
            return tuple(x if x is None else Refuse.apply(op, x, *sources) for x in found)

        return wrapped

    return decorate

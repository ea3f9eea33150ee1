# SPDX-License-Identifier: Apache-2.0
"""Choice between the two exact ways of ``cross_attention``, and of native code."""

from __future__ import annotations

from typing import Any

import torch

from tdc_kernels import registry

NAMES = ("project", "absorb")

# Absorbing is chosen where it needs less than this part of the projection's operations, by kind of
# device and of dtype. Measured on 2 cores (Zen 3, fp32), milliseconds of absorb and of project:
# ratio 0.33 (8 rows of 16 queries, 206 tokens of 3584): 39 and 109; 0.57 (50 tokens): 11 and 15;
# 0.63 (32 queries, 257 tokens of 1408): 50 and 83; 1.0 (64 tokens): 8.0 and 7.7; 2.0 (64 queries):
# 10.5 and 6.2.
WORTH = {
    ("cpu", "fp32"): 0.8,
    ("cpu", "half"): 0.8,  # computed in fp32
    ("cpu", "half with matrix units"): 0.0,  # a plain product of half types is far ahead there
    ("cuda", "fp32"): 0.0,  # not measured: the plain way until it is
    ("cuda", "half"): 0.0,
}

# The same where gradients are wanted: what is computed again in the backward costs the absorbed way
# more. InstructBLIP-Video's Q-Former (ratio 0.63) took 1.05 times as long to train with it as with
# PyTorch's own keys, values and autograd, which is what a call gets beyond this.
WORTH_IN_TRAINING = 0.5


@registry.constant
def has_matrix_units() -> bool:
    """True where this CPU multiplies bf16 matrices faster than fp32 ones (AVX-512 BF16 or AMX)."""
    capability: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capability.get("avx512_bf16") or capability.get("amx_bf16"))


def kind(query: torch.Tensor) -> tuple[str, str]:
    device = "cpu" if query.device.type in ("cpu", "meta") else query.device.type
    if query.dtype in (torch.float32, torch.float64):
        return device, "fp32"
    if device == "cpu" and has_matrix_units():
        return device, "half with matrix units"
    return device, "half"


def absorbs(query: torch.Tensor, visual: torch.Tensor, audio: Any, *rest: Any) -> bool:
    """True where absorbing is the faster way; arguments in the op's order."""
    num_heads, index = rest[4], rest[5]
    training = in_training(query, visual, audio, *rest)
    return pays(query, query.shape[2], visual, audio, num_heads, index, training)


def pays(
    query: torch.Tensor,
    width: int,
    visual: torch.Tensor,
    audio: torch.Tensor | None,
    num_heads: int,
    index: torch.Tensor | None,
    training: bool,
) -> bool:
    """True where absorbing pays for queries ``[M, Q, width]``, projected already or not yet."""
    rows, queries = query.shape[:2]
    worth = WORTH.get(kind(query), 0.0)
    if training:
        worth = min(worth, WORTH_IN_TRAINING)
    if torch.compiler.is_compiling():
        # The limit for many tokens, which asks nothing of lengths: no recompilation over them.
        return bool(queries * num_heads < worth * width)
    frames = visual.shape[0] if index is None else min(rows, visual.shape[0])
    absorbed = projected = 0
    for tokens in (visual, audio):
        if tokens is not None:
            depth = tokens.shape[2]
            projected += frames * tokens.shape[1] * depth * width
            absorbed += rows * queries * depth * (width + num_heads * tokens.shape[1])
    return bool(absorbed < worth * projected)


def in_training(*args: Any) -> bool:
    """True where tokens, weights or queries want a gradient."""
    tensors = (x for x in args if isinstance(x, torch.Tensor))
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def native_pays(*args: Any) -> str | None:
    """``registry.Accepts`` of automatic choice, of the native backend."""
    if kind(args[0]) == ("cpu", "half with matrix units"):
        return "half precision is faster on this CPU's matrix units, through PyTorch"
    if not args[-1] and in_training(*args):
        return "keys and values computed again in the backward cost more than autograd's"
    return None

# SPDX-License-Identifier: Apache-2.0
"""The arguments of a call as the Triton kernels take them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton

from tdc_kernels import _checks
from tdc_kernels.ops import operands
from tdc_kernels.ops.cross_attention.checks import check, check_rows
from tdc_kernels.ops.cross_attention.reference import known
from tdc_kernels.ops.frame_similarity.triton import triton_dtype

# Nothing here is tuned on a GPU. Queries of a block, columns of a head, warps. More tokens of a
# block than token_block() says do not fit the registers in the gradients.
QUERIES, COLUMNS, WARPS = 64, 64, 4
# Tokens that are converted, gathered or cleared for one matrix product: 59 MB of 3584 bf16 values.
TOKENS_AT_ONCE = 8192


@dataclass(frozen=True)
class Source:
    """Visual or audio tokens."""

    tokens: torch.Tensor  # [F, N, D]
    lengths: torch.Tensor | None
    w_key: torch.Tensor  # [H*d, D]
    w_value: torch.Tensor
    first: int  # the first one's place among all of a frame's tokens

    @property
    def count(self) -> int:
        return self.tokens.shape[1]

    def matrices(
        self, frames: torch.Tensor | None, dtype: torch.dtype, clear: bool
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """All tokens of all frames, or of ``frames`` [M], as ``[n * N, D]`` in ``dtype``, in parts;
        what lies beyond the lengths as zeros if ``clear``."""
        clear = clear and self.lengths is not None
        total = self.tokens.shape[0] if frames is None else frames.shape[0]
        as_it_is = frames is None and self.tokens.dtype == dtype and not clear
        step = max(total if as_it_is else TOKENS_AT_ONCE // max(self.count, 1), 1)
        for start in range(0, total, step):
            part = slice(start, min(start + step, total))
            these = part if frames is None else frames[part]
            x = self.tokens[these]
            if clear and self.lengths is not None:
                x = known(x, self.lengths[these])
            yield part, x.to(dtype).flatten(0, 1)


@dataclass(frozen=True)
class Call:
    """The arguments of a call, and what follows from them."""

    query: torch.Tensor  # [M, Q, H*d], dense
    sources: tuple[Source, ...]
    bias: torch.Tensor | None
    heads: int
    index: torch.Tensor | None
    mask: torch.Tensor | None  # [F, Nv + Na] bytes, dense

    @property
    def dim(self) -> int:
        return self.query.shape[2] // self.heads

    @property
    def in_all(self) -> int:
        return sum(source.count for source in self.sources)

    def existing(self, index: torch.Tensor | None) -> torch.Tensor | None:
        """Frame numbers as the kernels take them: the nearest that there is."""
        return None if index is None else index.clamp(0, self.sources[0].tokens.shape[0] - 1)

    def constants(self) -> dict[str, Any]:
        """Constants of all kernels that go by keys and values."""
        return {
            "DIM": self.dim,
            "SCALE": 1 / math.sqrt(self.dim),
            **blocks(self.query.dtype, self.query.shape[1], self.dim),
            "ACC": triton_dtype(self.query.dtype),
            "num_warps": WARPS,
        }

    def of_rows(self, frames: torch.Tensor | None) -> Call:
        """The same call where row m has keys and values of its own, those of ``frames[m]``."""
        if frames is None:
            return self
        sources = tuple(replace(s, lengths=at(s.lengths, frames)) for s in self.sources)
        return replace(self, sources=sources, index=None, mask=at(self.mask, frames))


def at(x: torch.Tensor | None, frames: torch.Tensor) -> torch.Tensor | None:
    return None if x is None else x[frames]


def call_of(
    query: torch.Tensor,
    visual: torch.Tensor,
    audio: torch.Tensor | None,
    w_key: torch.Tensor,
    b_key: torch.Tensor | None,  # the softmax does not see it
    w_value: torch.Tensor,
    b_value: torch.Tensor | None,
    num_heads: int,
    index: torch.Tensor | None,
    visual_lengths: torch.Tensor | None,
    audio_lengths: torch.Tensor | None,
    mask: torch.Tensor | None,
    w_key_audio: torch.Tensor | None,
    w_value_audio: torch.Tensor | None,
) -> Call:
    weights = (w_key, b_key, w_value, b_value)
    check(query, visual, audio, *weights, num_heads, w_key_audio, w_value_audio)
    check_rows(query, visual, audio, index, visual_lengths, audio_lengths, mask)
    for x in (*weights, w_key_audio, w_value_audio):
        if x is not None:
            _checks.same_dtype("weights", x, query.dtype, "query")
    operands.index(index, visual.shape[0], visual)
    sources = [Source(visual, visual_lengths, w_key, w_value, 0)]
    if audio is not None:
        own = (
            (w_key, w_value)
            if w_key_audio is None or w_value_audio is None
            else (w_key_audio, w_value_audio)
        )
        sources.append(Source(audio, audio_lengths, *own, visual.shape[1]))
    if mask is not None:
        mask = mask.view(torch.uint8)
    if b_value is not None:
        b_value = b_value.contiguous()
    return Call(query.contiguous(), tuple(sources), b_value, num_heads, index, mask)


def token_block(dtype: torch.dtype) -> int:
    """Tokens of a block; by 32, 156 and 50 are padded to 160 and 64."""
    return 32 if dtype.itemsize == 2 else 16


def blocks(dtype: torch.dtype, queries: int, dim: int) -> dict[str, int]:
    """At least 16 of everything, as the tensor cores want it."""
    return {
        "BLOCK_Q": min(QUERIES, max(16, triton.next_power_of_2(queries))),
        "BLOCK_N": token_block(dtype),
        "BLOCK_D": min(COLUMNS, max(16, triton.next_power_of_2(dim))),
    }

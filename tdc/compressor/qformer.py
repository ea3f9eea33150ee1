# SPDX-License-Identifier: Apache-2.0
"""Q-Former: BERT with learned cross-attention, the heart of the temporal context compressor.

A row is one dynamic frame: K queries that carry the scene's static frame look at that frame's
visual and audio tokens, with the question beside them (paper, section 3.2; the layer plan is that
of BLIP-2's Q-Former). Post-norm, exact GELU, queries without position.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tdc_kernels import nn as kernels

from .frame_tokens import FrameTokens, Pair
from .self_attention import self_attention
from .speedups import Speedups


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """``[B, L, H*d] -> [B, H, L, d]``."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


# Rows of tokens at a time on a CPU. A feed-forward of 8,556 rows (768 to 3072 and back, fp32, 2
# cores) took 554 ms at once, 501 ms in pieces of 512 rows, 483 ms of 1024 and 487 ms of 2048, as
# long as its two products alone: a piece's intermediates stay in the cache, and their memory is not
# given back to the system, which would clear it again for the next layer.
PIECE = 1024


def in_pieces(
    function: Callable[..., Tensor], x: Tensor, mask: Tensor | None, *args: Any
) -> Tensor:
    """``function(x, mask, ...)``, some entries of the batch ``x [M, L, Dq]`` at a time."""
    step = max(1, PIECE // max(x.shape[1], 1))
    if x.device.type != "cpu" or torch.is_grad_enabled() or len(x) <= step:
        return function(x, mask, *args)
    masks = [None] * len(x) if mask is None else mask.split(step)
    out: Tensor | None = None
    for number, piece in enumerate(x.split(step)):
        y = function(piece.contiguous(), masks[number], *args)
        out = y.new_empty(len(x), *y.shape[1:]) if out is None else out
        out[number * step : number * step + len(y)] = y
    assert out is not None
    return out


class SelfAttention(nn.Module):
    """Bidirectional self-attention over queries and question, with output projection and norm."""

    def __init__(self, hidden_size: int, num_heads: int, eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.out = nn.Linear(hidden_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps=eps)

    def forward(self, x: Tensor, mask: Tensor | None = None, rows: int | None = None) -> Tensor:
        """``x [M, L, Dq]``; ``mask [M, 1, 1, L]`` bool, True = may be seen, None = all; ``rows``:
        how many of the L rows to compute, None = all."""
        asking = x if rows is None else x[:, :rows].contiguous()
        q = split_heads(self.query(asking), self.num_heads)
        k, v = (split_heads(p(x), self.num_heads) for p in (self.key, self.value))
        attended = self_attention(q, k, v, mask)
        return self.norm(asking + self.out(attended.transpose(1, 2).flatten(2)))


class CrossAttention(kernels.CrossAttention):
    """Queries look at their frame's visual and audio tokens; residual and norm around it."""

    def __init__(self, hidden_size: int, num_heads: int, encoder_width: int, eps: float) -> None:
        super().__init__(hidden_size, encoder_width, num_heads)
        self.norm = nn.LayerNorm(hidden_size, eps=eps)

    def forward(self, x: Tensor, frames: FrameTokens, layer: int) -> Tensor:  # type: ignore[override]
        """``x [M, K, Dq]``; of ``frames`` the entries of one layer."""
        if frames.keys_values:
            attended = self._attend(x, frames.keys_values[layer], frames.mask)
        else:
            attended = super().forward(x, **frames.arguments(layer))
        return self.norm(x + attended)

    def _attend(self, x: Tensor, keys_values: Pair | None, mask: Tensor | None) -> Tensor:
        assert keys_values is not None
        q, k, v = (split_heads(t, self.num_heads) for t in (self.query(x), *keys_values))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(attended.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """``LN(x + W2 GELU(W1 x))``; queries and question have one each."""

    def __init__(self, hidden_size: int, intermediate_size: int, eps: float) -> None:
        super().__init__()
        self.up = nn.Linear(hidden_size, intermediate_size)
        self.down = nn.Linear(intermediate_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps=eps)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """``x [M, L, Dq]``; every row for itself, whatever the ``mask``."""
        return self.norm(x + self.down(F.gelu(self.up(x))))


class QFormerLayer(nn.Module):
    """Self-attention over everything, cross-attention for the queries, separate feed-forwards."""

    def __init__(self, config: Any, encoder_width: int, has_cross_attention: bool) -> None:
        super().__init__()
        width, heads, eps = config.hidden_size, config.num_attention_heads, config.layer_norm_eps
        self.attention = SelfAttention(width, heads, eps)
        self.cross_attention = (
            CrossAttention(width, heads, encoder_width, eps) if has_cross_attention else None
        )
        self.ffn_query = FeedForward(width, config.intermediate_size, eps)
        self.ffn_text = FeedForward(width, config.intermediate_size, eps)

    def forward(
        self,
        x: Tensor,
        num_queries: int,
        mask: Tensor | None,
        frames: FrameTokens,
        layer: int,
        group: Tensor | None = None,
        last: bool = False,
        pieces: bool = False,
    ) -> Tensor:
        """One layer.

        Args:
            x: ``[M, K + T, Dq]``, queries before text.
            frames: what the queries attend to, if the layer has cross-attention.
            layer: its own number.
            group: ``[M]``: ``x`` and ``mask`` hold one entry per anchor, and row m goes on with
                entry ``group[m]`` from the cross-attention on.
            last: the text rows are not needed any more.
            pieces: work on some rows at a time, see :func:`in_pieces`.
        """

        def apply(module: nn.Module, x: Tensor, *args: Any) -> Tensor:
            return in_pieces(module, x, *args) if pieces else module(x, *args)

        x = apply(self.attention, x, mask, num_queries if last else None)
        # Contiguous: without a gradient to come, torch's linear multiplies a 3-D slice entry by
        # entry (bmm), which took up to 3.5 times as long.
        queries, text = x[:, :num_queries].contiguous(), x[:, num_queries:].contiguous()
        if text.shape[1] > 0 or torch.is_grad_enabled():
            # Of no rows: gradients of zero, as optimizers expect.
            text = apply(self.ffn_text, text, None)
        if group is not None:
            queries, text = queries[group], text[group]
        if self.cross_attention is not None:
            queries = self.cross_attention(queries, frames, layer)
        queries = apply(self.ffn_query, queries, None)
        return torch.cat([queries, text], dim=1)


class QFormer(nn.Module):
    """Compresses frames to K tokens each.

    Args:
        config: a BERT configuration (width, layers, heads, intermediate size, vocabulary, eps).
        encoder_width: D, the width of the visual and audio tokens.
        cross_attention_every: layer j has cross-attention where ``j % cross_attention_every == 0``.
    """

    def __init__(self, config: Any, encoder_width: int, cross_attention_every: int = 2) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.embeddings_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layers = nn.ModuleList(
            QFormerLayer(config, encoder_width, j % cross_attention_every == 0)
            for j in range(config.num_hidden_layers)
        )
        self.gradient_checkpointing = False  # transformers' name: gradient_checkpointing_enable()

    def cross_attentions(self) -> list[CrossAttention | None]:
        """That of every layer."""
        blocks = (layer.cross_attention for layer in self.layers)
        return [block if isinstance(block, CrossAttention) else None for block in blocks]

    def forward(
        self,
        queries: Tensor,
        frames: FrameTokens,
        *,
        question_ids: Tensor | None = None,
        question_mask: Tensor | None = None,
        group: Tensor | None = None,
        speedups: Speedups | None = None,
    ) -> Tensor:
        """One call for all dynamic frames of all videos.

        Args:
            queries: ``[M, K, Dq]``, one group per dynamic frame; with ``group`` ``[A, K, Dq]``.
            frames: what the queries attend to.
            question_ids: ``[M, T]`` int64 question tokens of each row's video, or None; with
                ``group`` ``[A, T]``.
            question_mask: like them, bool, False on padding; None when nothing is padded.
            group: int64 ``[M]``, which of A entries (one per anchor) a row starts from.

        Returns:
            ``[M, K, Dq]`` hidden states of the queries.
        """

        speedups = speedups or Speedups()
        if group is not None and not speedups.share_first_layer:
            queries = queries[group]
            question_ids = None if question_ids is None else question_ids[group]
            question_mask = None if question_mask is None else question_mask[group]
            group = None
        num_queries, mask = queries.shape[1], None
        if question_ids is not None:
            queries = torch.cat([queries, self.embed_question(question_ids)], dim=1)  # [A, K+T, Dq]
            if question_mask is not None:
                seen = question_mask.new_ones(question_mask.shape[0], num_queries)
                mask = torch.cat([seen, question_mask], dim=1)[:, None, None, :]
        x = self.embeddings_norm(queries)
        for number, layer in enumerate(self.layers):
            last = speedups.skip_dead_rows and number == len(self.layers) - 1
            args = (x, num_queries, mask, frames, number, group, last, speedups.pieces)
            if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(layer, *args, use_reentrant=False)
            else:
                x = layer(*args)
            if group is not None:  # the first layer has spread the anchors' entries over the rows
                mask, group = None if mask is None else mask[group], None
        return x[:, :num_queries]

    def embed_question(self, question_ids: Tensor) -> Tensor:
        """``[M, T]`` ids to ``[M, T, Dq]``: word plus position; queries have no position."""
        positions = torch.arange(question_ids.shape[1], device=question_ids.device)
        return self.word_embeddings(question_ids) + self.position_embeddings(positions)

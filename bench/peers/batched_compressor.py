# SPDX-License-Identifier: Apache-2.0
"""The compressor as one would batch it in PyTorch: one Q-Former call for all dynamic frames, plain
modules, attention by ``scaled_dot_product_attention``, the Q-Former under ``torch.compile``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from tdc.compressor.compressor import Compressor
from tdc.compressor.qformer import CrossAttention, FeedForward, QFormer, QFormerLayer, SelfAttention

from .release_compressor import CHUNK


def compiled(model: Compressor) -> Callable[..., Tensor]:
    """``compress(visual, scene_starts, question_ids, audio)``, see ``release_compressor``."""
    run = torch.compile(_qformer, dynamic=False)

    def compress(
        visual: Tensor, scene_starts: list[int], question_ids: Tensor, audio: Tensor | None = None
    ) -> Tensor:
        frames = visual
        if audio is not None and model.audio_proj is not None:
            frames = torch.cat([visual, model.audio_proj(audio)], dim=1)
        windows = [
            (first, min(first + CHUNK, end))
            for start, end in pairwise([*scene_starts, len(frames)])
            for first in range(start, end, CHUNK)
        ]
        queries = _queries(model, visual, [first for first, _ in windows])
        repeats = torch.tensor([b - a - 1 for a, b in windows], device=visual.device)
        dynamic = [t for first, stop in windows for t in range(first + 1, stop)]
        ids = question_ids.expand(len(dynamic), -1)
        hidden = run(model.qformer, queries.repeat_interleave(repeats, 0), frames[dynamic], ids)
        tokens = F.normalize(model.output_proj(hidden), dim=-1)
        return _pack(frames, tokens, model.separator[None], windows)

    return compress


def _queries(model: Compressor, visual: Tensor, anchors: list[int]) -> Tensor:
    assert model.query_proj is not None
    pooled = F.adaptive_avg_pool1d(visual[anchors].transpose(1, 2), model.num_context_tokens)
    return model.query_proj(pooled.transpose(1, 2))  # [A, K, Dq]


def _pack(
    frames: Tensor, tokens: Tensor, separator: Tensor, windows: list[tuple[int, int]]
) -> Tensor:
    parts, row = [], 0
    spaced = torch.cat([tokens, separator.expand(len(tokens), 1, -1)], dim=1)  # [M, K+1, D]
    for first, stop in windows:
        parts += [frames[first], separator, spaced[row : row + stop - first - 1].flatten(0, 1)]
        row += stop - first - 1
    return torch.cat(parts)


def _qformer(qformer: QFormer, queries: Tensor, encoder: Tensor, ids: Tensor) -> Tensor:
    num_queries = queries.shape[1]
    positions = torch.arange(ids.shape[1], device=ids.device)
    text = qformer.word_embeddings(ids) + qformer.position_embeddings(positions)
    x = qformer.embeddings_norm(torch.cat([queries, text], dim=1))
    for layer in cast("Iterable[QFormerLayer]", qformer.layers):
        x = _attention(layer.attention, x, x)
        query_rows, text_rows = x[:, :num_queries], x[:, num_queries:]
        if layer.cross_attention is not None:
            query_rows = _attention(layer.cross_attention, query_rows, encoder)
        query_rows = _feed_forward(layer.ffn_query, query_rows)
        x = torch.cat([query_rows, _feed_forward(layer.ffn_text, text_rows)], dim=1)
    return x[:, :num_queries]


def _attention(block: SelfAttention | CrossAttention, x: Tensor, source: Tensor) -> Tensor:
    def heads(t: Tensor) -> Tensor:
        return t.unflatten(-1, (block.num_heads, -1)).transpose(1, 2)

    q, k, v = heads(block.query(x)), heads(block.key(source)), heads(block.value(source))
    out = F.scaled_dot_product_attention(q, k, v)
    return block.norm(x + block.out(out.transpose(1, 2).flatten(2)))


def _feed_forward(block: FeedForward, x: Tensor) -> Tensor:
    return block.norm(x + block.down(F.gelu(block.up(x))))

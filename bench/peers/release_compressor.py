# SPDX-License-Identifier: Apache-2.0
"""The compressor run the way the authors' released code runs it, re-stated in our own words.

Same mathematics and the same weights as :class:`tdc.compressor.compressor.Compressor`; what
differs is how the work is cut up:

- every scene is cut into chunks of eight frames, and every chunk is a Q-Former call of its own, on
  its ``n - 1`` dynamic frames;
- the static frame is repeated for every dynamic frame, and each copy is pooled and projected;
- visual and audio tokens of a frame are concatenated before anything reads them;
- attention is written out as matrix product, softmax, matrix product;
- the last layer computes text rows that nothing reads;
- separators are expanded and concatenated frame by frame, chunk by chunk.

It reads our modules' weights but calls none of their code, so it stays the same yardstick when ours
gets faster, and checks the results independently. One video, no padding, pooled queries, static
frames kept: the released default.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from tdc.compressor.compressor import Compressor
from tdc.compressor.qformer import CrossAttention, FeedForward, QFormer, QFormerLayer, SelfAttention

CHUNK = 8  # frames per Q-Former call, fixed in the released code


def segment(features: Tensor, num_boundaries: int) -> list[int]:
    """First frame of every scene: the lowest cosines of neighbouring ``features [F, T, C]``."""
    num_frames = features.shape[0]
    if num_frames <= num_boundaries + 1:
        return list(range(num_frames))
    flat = features.flatten(1)  # [F, T*C]
    similarity = F.cosine_similarity(flat[:-1], flat[1:], dim=-1)  # [F-1]
    cuts = torch.argsort(similarity)[:num_boundaries] + 1
    return [0, *torch.sort(cuts).values.tolist()]


def compress(
    model: Compressor,
    visual: Tensor,
    scene_starts: list[int],
    question_ids: Tensor,
    audio: Tensor | None = None,
) -> Tensor:
    """Context tokens of one video.

    Args:
        model: whose weights are used.
        visual: ``[F, Nv, D]`` frame tokens.
        scene_starts: what :func:`segment` returned.
        question_ids: ``[T]`` int64.
        audio: ``[F, Na, Ca]`` BEATs tokens, or None.

    Returns:
        ``[N, D]``.
    """
    frames = list(visual.unbind(0))
    if audio is not None and model.audio_proj is not None:
        frames = [torch.cat([v, model.audio_proj(a)]) for v, a in zip(visual, audio, strict=True)]
    num_visual = visual.shape[1]
    edges = [*scene_starts, len(frames)]
    chunks = []
    for start, end in pairwise(edges):
        for first in range(start, end, CHUNK):
            chunk = torch.stack(frames[first : min(first + CHUNK, end)])  # [n, N, D]
            chunks.append(_chunk(model, chunk, num_visual, question_ids))
    return torch.cat(chunks)


def _chunk(model: Compressor, chunk: Tensor, num_visual: int, question_ids: Tensor) -> Tensor:
    """``[n, N, D]`` frames to static tokens, separator, and K tokens and separator per frame."""
    static, dynamic = chunk[0], chunk[1:]
    separator = model.separator[None]  # [1, D]
    if len(dynamic) == 0:
        return torch.cat([static, separator])
    assert model.query_proj is not None
    repeated = static[:num_visual].expand(len(dynamic), -1, -1)  # [n-1, Nv, D]
    pooled = F.adaptive_avg_pool1d(repeated.transpose(1, 2), model.num_context_tokens)
    queries = model.query_proj(pooled.transpose(1, 2))  # [n-1, K, Dq]
    ids = question_ids.expand(len(dynamic), -1)
    hidden = _qformer(model.qformer, queries, dynamic, ids)
    tokens = F.normalize(model.output_proj(hidden), dim=-1)  # [n-1, K, D]
    separators = separator.expand(len(dynamic), 1, -1)
    tokens = torch.cat([tokens, separators], dim=1).flatten(0, 1)
    return torch.cat([static, separator, tokens])


def _qformer(qformer: QFormer, queries: Tensor, encoder: Tensor, ids: Tensor) -> Tensor:
    """BERT over ``[queries; text]``, the queries reading ``encoder [B, N, D]``: ``[B, K, Dq]``."""
    num_queries = queries.shape[1]
    positions = torch.arange(ids.shape[1], device=ids.device)
    text = qformer.word_embeddings(ids) + qformer.position_embeddings(positions)
    x = qformer.embeddings_norm(torch.cat([queries, text], dim=1))  # [B, K+T, Dq]
    for layer in cast("Iterable[QFormerLayer]", qformer.layers):
        x = _attention(layer.attention, x, x)
        query_rows, text_rows = x[:, :num_queries], x[:, num_queries:]
        if layer.cross_attention is not None:
            query_rows = _attention(layer.cross_attention, query_rows, encoder)
        query_rows = _feed_forward(layer.ffn_query, query_rows)
        x = torch.cat([query_rows, _feed_forward(layer.ffn_text, text_rows)], dim=1)
    return x[:, :num_queries]


def _attention(block: SelfAttention | CrossAttention, x: Tensor, source: Tensor) -> Tensor:
    """``LN(x + out(softmax(q k^T / sqrt(d)) v))`` of ``x [B, L, Dq]`` over ``source [B, N, *]``."""

    def heads(t: Tensor) -> Tensor:
        return t.unflatten(-1, (block.num_heads, -1)).transpose(1, 2)  # [B, H, L, d]

    q, k, v = heads(block.query(x)), heads(block.key(source)), heads(block.value(source))
    probabilities = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
    out = (probabilities @ v).transpose(1, 2).flatten(2)
    return block.norm(x + block.out(out))


def _feed_forward(block: FeedForward, x: Tensor) -> Tensor:
    return block.norm(x + block.down(F.gelu(block.up(x))))

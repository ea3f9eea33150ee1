# SPDX-License-Identifier: Apache-2.0
"""The gradient of ``cross_attention`` on the CPU, both ways, a few frames at a time.

Nothing of the forward is kept: scores are computed again, and what a strategy needs beside them
(keys and values, or absorbed queries) exists for one chunk of frames. Matrix products are
PyTorch's; everything is computed in fp32 (fp64 for fp64).

With P the probabilities and dO the output's gradient, per head: ``dP = dO V^T``,
``dS = P (dP - sum P dP)``. *project*: ``dq = dS K``, ``dK = dS^T q``, ``dV = P^T dO``. *absorb*,
with ``q~ = q W_k`` and ``dY = dO W_v``: ``dP = dY X^T``, ``dq = (dS X) W_k^T``,
``dW_k = q^T (dS X)``, ``dW_v = dO^T (P X)``, ``dX = P^T dY + dS^T q~``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from tdc_kernels.ops.cross_attention.reference import hidden_tokens, known

CHUNK = 8  # frames at a time, see absorbed.py


@dataclass
class Source:
    """Tokens of one kind, and sums of the gradients."""

    tokens: torch.Tensor  # [F, N, D]
    lengths: torch.Tensor | None
    weights: Weights
    grad: torch.Tensor | None  # as tokens


@dataclass
class Weights:
    key: torch.Tensor  # [H, d, D], in the dtype computed in
    value: torch.Tensor
    grad_key: torch.Tensor | None
    grad_value: torch.Tensor | None


@dataclass
class Chunk:
    """Rows that attend a few frames, and those frames' tokens."""

    q: torch.Tensor  # [m, H, Q, d], scaled
    grad: torch.Tensor  # [m, H, Q, d], zero for rows without tokens
    tokens: list[torch.Tensor]  # [f, N, D] of each source
    place: torch.Tensor | None  # [m]: which of the f frames a row attends; None: row i frame i
    hidden: torch.Tensor | None  # [m, 1, 1, Nv + Na]
    seen: torch.Tensor | None  # [m, 1, 1, 1]: has the row any token?


def backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    visual: torch.Tensor,
    audio: torch.Tensor | None,
    w_key: torch.Tensor,
    b_key: torch.Tensor | None,
    w_value: torch.Tensor,
    b_value: torch.Tensor | None,
    num_heads: int,
    index: torch.Tensor | None,
    visual_lengths: torch.Tensor | None,
    audio_lengths: torch.Tensor | None,
    mask: torch.Tensor | None,
    w_key_audio: torch.Tensor | None,
    w_value_audio: torch.Tensor | None,
    absorb: bool,
    tokens: bool,
    weights: bool,
) -> tuple[torch.Tensor, ...]:
    acc = torch.float64 if query.dtype == torch.float64 else torch.float32

    def of(key: torch.Tensor, value: torch.Tensor) -> Weights:
        pair = [w.to(acc).unflatten(0, (num_heads, -1)) for w in (key, value)]
        zeros = [torch.zeros_like(w) if weights else None for w in pair]
        return Weights(*pair, *zeros)

    def zeros_like(x: torch.Tensor) -> torch.Tensor | None:
        return x.new_zeros(x.shape) if tokens else None

    shared = of(w_key, w_value)
    own = None if w_key_audio is None or w_value_audio is None else of(w_key_audio, w_value_audio)
    sources = [Source(visual, visual_lengths, shared, zeros_like(visual))]
    if audio is not None:
        sources.append(Source(audio, audio_lengths, own or shared, zeros_like(audio)))
    hidden = hidden_tokens(visual, audio, visual_lengths, audio_lengths, mask)
    grad_query = query.new_zeros(query.shape)
    grad_bias = query.new_zeros(query.shape[2], dtype=acc)
    rows_with_queries = query.shape[0] if query.numel() > 0 else 0
    for rows, frames, place in chunks(index, rows_with_queries):
        chunk = gather(grad, query, num_heads, sources, hidden, acc, rows, frames, place)
        step = absorb_chunk if absorb else project_chunk
        found, of_tokens = step(chunk, sources)
        grad_query[rows] = found.transpose(1, 2).flatten(2).to(query.dtype)
        grad_bias += chunk.grad.sum((0, 2)).flatten()
        for source, part in zip(sources, of_tokens, strict=True):
            if source.grad is not None and part is not None:
                source.grad[frames] = part.to(source.grad.dtype)

    def or_empty(x: torch.Tensor | None, like: torch.Tensor | None) -> torch.Tensor:
        if x is None or like is None:
            return grad.new_empty((0,))
        return x.reshape(like.shape).to(like.dtype)

    key, value = shared.grad_key, shared.grad_value
    key_audio, value_audio = (own.grad_key, own.grad_value) if own else (None, None)
    return (
        grad_query,
        or_empty(sources[0].grad, visual),
        or_empty(sources[-1].grad, audio),
        or_empty(key, w_key),
        or_empty(value, w_value),
        or_empty(grad_bias if weights else None, b_value),
        or_empty(key_audio, w_key_audio),
        or_empty(value_audio, w_value_audio),
    )


Some = torch.Tensor | slice


def chunks(
    index: torch.Tensor | None, rows: int
) -> Iterator[tuple[Some, Some, torch.Tensor | None]]:
    """Rows, their frames (each once, so that no two chunks write to one frame), and which of those
    a row attends (None: row i frame i)."""
    if index is None:
        for start in range(0, rows, CHUNK):
            every = slice(start, start + CHUNK)  # views, no copies
            yield every, every, None
        return
    frames, place = index[:rows].unique(return_inverse=True)
    for start in range(0, frames.shape[0], CHUNK):
        inside = (place >= start) & (place < start + CHUNK)
        mine = inside.nonzero().squeeze(1)
        yield mine, frames[start : start + CHUNK].long(), place[mine] - start


def at_rows(x: torch.Tensor, place: torch.Tensor | None) -> torch.Tensor:
    """``[f, ...] -> [m, ...]``."""
    return x if place is None else x[place]


def gather(grad, query, num_heads, sources, hidden, acc, rows, frames, place) -> Chunk:
    def heads(x: torch.Tensor) -> torch.Tensor:
        return x[rows].to(acc).unflatten(2, (num_heads, -1)).transpose(1, 2)  # [m, H, Q, d]

    out, q = heads(grad), heads(query)
    tokens = [
        known(s.tokens[frames], None if s.lengths is None else s.lengths[frames]).to(acc)
        for s in sources
    ]
    seen = None
    if hidden is not None:
        hidden = at_rows(hidden[frames], place)[:, None, None]
        seen = ~hidden.all(3, keepdim=True)
        out = torch.where(seen, out, 0)
    elif sum(x.shape[1] for x in tokens) == 0:
        out = torch.zeros_like(out)
    return Chunk(q / math.sqrt(q.shape[3]), out, tokens, place, hidden, seen)


def scores_gradient(
    chunk: Chunk, scores: list[torch.Tensor], grads: list[torch.Tensor]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Probabilities P and dS of each source, from the scores and dP of each: ``[m, H, Q, N]``."""
    score, grad = torch.cat(scores, 3), torch.cat(grads, 3)
    if chunk.hidden is not None and chunk.seen is not None:
        score = score.masked_fill(chunk.hidden & chunk.seen, float("-inf"))
    p = score.softmax(3)
    if chunk.seen is not None:
        p = torch.where(chunk.seen, p, 0)
    ds = torch._softmax_backward_data(grad, p, 3, p.dtype)
    sizes = [x.shape[3] for x in scores]
    return list(p.split(sizes, 3)), list(ds.split(sizes, 3))


def add_up(x: torch.Tensor, chunk: Chunk) -> torch.Tensor:
    """``[m, ...] -> [f, ...]``: rows of one frame, in order."""
    if chunk.place is None:
        return x
    frames = chunk.tokens[0].shape[0]
    if x.shape[0] == frames:  # a row each, as place counts every frame at least once
        return x[chunk.place.argsort()]
    return x.new_zeros((frames, *x.shape[1:])).index_add_(0, chunk.place, x)


def project_chunk(
    chunk: Chunk, sources: list[Source]
) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    """dq and the tokens' gradients ``[f, N, D]``; adds to the weights' gradients."""
    keys: list[torch.Tensor] = []
    values: list[torch.Tensor] = []
    for x, s in zip(chunk.tokens, sources, strict=True):
        for weight, found in ((s.weights.key, keys), (s.weights.value, values)):
            mapped = x @ weight.flatten(0, 1).t()  # [f, N, H*d]
            mapped = mapped.unflatten(2, weight.shape[:2]).transpose(1, 2)
            found.append(at_rows(mapped, chunk.place))  # [m, H, N, d]
    scores = [chunk.q @ k.transpose(2, 3) for k in keys]
    p, ds = scores_gradient(chunk, scores, [chunk.grad @ v.transpose(2, 3) for v in values])
    dq = torch.zeros_like(chunk.q)
    of_tokens: list[torch.Tensor | None] = []
    for i, (x, s) in enumerate(zip(chunk.tokens, sources, strict=True)):
        dq += ds[i] @ keys[i]
        total: torch.Tensor | None = None
        for left, right, weight, grad in (
            (ds[i], chunk.q, s.weights.key, s.weights.grad_key),
            (p[i], chunk.grad, s.weights.value, s.weights.grad_value),
        ):
            if grad is None and s.grad is None:
                continue
            dk = add_up((left.transpose(2, 3) @ right).transpose(1, 2).flatten(2), chunk)
            if grad is not None:
                grad.flatten(0, 1).addmm_(dk.flatten(0, 1).t(), x.flatten(0, 1))
            if s.grad is not None:
                part = dk @ weight.flatten(0, 1)
                total = part if total is None else total + part
        of_tokens.append(total)
    return dq / math.sqrt(dq.shape[3]), of_tokens


def absorb_chunk(
    chunk: Chunk, sources: list[Source]
) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    """The same without keys and values."""
    m, heads, queries, dim = chunk.q.shape
    q, grad = (x.transpose(0, 1).flatten(1, 2) for x in (chunk.q, chunk.grad))  # [H, m*Q, d]

    def by_row(x: torch.Tensor) -> torch.Tensor:  # [H, m*Q, D] -> [m, H*Q, D]
        return x.unflatten(1, (m, queries)).transpose(0, 1).flatten(1, 2)

    def by_head(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(1, (heads, queries)).transpose(0, 1).flatten(1, 2)

    rows = [at_rows(x, chunk.place) for x in chunk.tokens]  # [m, N, D]
    absorbed: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for s in sources:
        if id(s.weights) not in absorbed:
            pair = torch.bmm(q, s.weights.key), torch.bmm(grad, s.weights.value)
            absorbed[id(s.weights)] = by_row(pair[0]), by_row(pair[1])
    pairs = [absorbed[id(s.weights)] for s in sources]  # q~ and dY, [m, H*Q, D]
    shape = (m, heads, queries, -1)
    scores = [
        torch.bmm(a, x.transpose(1, 2)).view(shape) for (a, _), x in zip(pairs, rows, strict=True)
    ]
    grads = [
        torch.bmm(dy, x.transpose(1, 2)).view(shape) for (_, dy), x in zip(pairs, rows, strict=True)
    ]
    p, ds = ([x.flatten(1, 2) for x in part] for part in scores_gradient(chunk, scores, grads))
    dq = torch.zeros_like(q)
    of_tokens: list[torch.Tensor | None] = []
    for i, (x, s) in enumerate(zip(rows, sources, strict=True)):
        w = s.weights
        mixed = by_head(torch.bmm(ds[i], x))  # [H, m*Q, D]
        dq.baddbmm_(mixed, w.key.transpose(1, 2))
        if w.grad_key is not None and w.grad_value is not None:
            w.grad_key.baddbmm_(q.transpose(1, 2), mixed)
            w.grad_value.baddbmm_(grad.transpose(1, 2), by_head(torch.bmm(p[i], x)))
        if s.grad is None:
            of_tokens.append(None)
            continue
        total = torch.bmm(p[i].transpose(1, 2), pairs[i][1])
        total.baddbmm_(ds[i].transpose(1, 2), pairs[i][0])
        of_tokens.append(add_up(total, chunk))
    dq = dq.unflatten(1, (m, queries)).transpose(0, 1)  # [m, H, Q, d]
    return dq / math.sqrt(dim), of_tokens

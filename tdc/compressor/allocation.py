# SPDX-License-Identifier: Apache-2.0
"""An adaptive number of context tokens per frame (``TDCConfig.context_allocation="adaptive"``).

The paper gives every dynamic frame the same K tokens. Here a frame that looks like its anchor gets
fewer and one that differs gets more, while a video's tokens stay K times its dynamic frames: no
budget changes.

1. :func:`frame_changes`: how far each dynamic frame is from its anchor.
2. :func:`allocate`: changes to whole numbers of tokens with that exact sum.
3. :func:`entries` and :func:`slots`: a frame with l tokens asks with the anchor pooled to l bins,
   as one with K tokens asks with K. All frames still go through the Q-Former in one call, with as
   many query slots as the longest may need. The first l slots are the l bins; the others repeat the
   bins evenly, and what they become is dropped. Queries have no position: a slot's place does not
   matter, and repeats weigh in the queries' self-attention only. Hence

   - what is kept are the *first* l outputs, and they cover the whole picture, whatever l is;
   - what a frame becomes depends on its own l alone, not on what the batch's other frames get;
   - with l = K every query is there twice (at the default maximum of 2 K), and attention among the
     queries is what it is without repeats. Beside a question it is not quite: there the queries
     weigh twice as much against the question's tokens;
   - the Q-Former computes 2 K rows per frame instead of K.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import isfinite

import torch
import torch.nn.functional as F
from torch import Tensor

from tdc_kernels import ContextPlan, anchor_queries

from ..encoder.features import VideoFeatures

# Changes are counted in units of this. It is above what rounding does to equal frames: bf16 moves a
# value by 2^-9 of it at most, which moves 1 - cosine by about 2^-18 = 4e-6.
CHANGE_UNIT = 1e-4
# Frames compared at a time: at the paper's sizes (K = 16, D = 3584, fp32) 15 MB.
FRAMES_AT_A_TIME = 64


def least_tokens(num_context_tokens: int) -> int:
    """What a frame keeps however little it changes: a quarter of K, one at least."""
    return max(1, num_context_tokens // 4)


def context_lengths(
    features: VideoFeatures, plan: ContextPlan, num_context_tokens: int, most: int
) -> list[int]:
    """Context tokens of every frame, for ``plan_context(compressed_lengths=...)``.

    Args:
        features: what ``encode_video`` returned.
        plan: of the same frames with K tokens each and without a limit, on the host.
        num_context_tokens: K, what the dynamic frames of a video have on average.
        most: the most tokens of one frame, at least K.

    Returns:
        ``F`` ints. Static frames have K, which nobody reads. Without static frames an anchor is
        compressed as well: it keeps K tokens, as nothing else shows what others are compared to.
    """
    lengths = [num_context_tokens] * features.cu_frames[-1]
    frames, anchors = plan.dynamic.long(), plan.anchors[plan.dynamic_anchor.long()].long()
    for start, stop in pairwise(features.cu_frames):
        mine = (frames >= start) & (frames < stop) & (frames != anchors)
        changes = frame_changes(features, frames[mine], anchors[mine], num_context_tokens)
        tokens = allocate(changes, num_context_tokens, most)
        for frame, count in zip(frames[mine].tolist(), tokens, strict=True):
            lengths[frame] = count
    return lengths


@torch.no_grad()
def frame_changes(
    features: VideoFeatures, frames: Tensor, anchors: Tensor, num_bins: int
) -> list[float]:
    """1 - cosine of each frame's and its anchor's visual tokens, pooled to ``num_bins`` bins.

    The bins are those that the anchor's queries are pooled to, so what is compared is what the
    anchor asks and what the frame would ask in its place. They cost little: before pooling every
    dynamic frame would have to go through the visual projector's last layer, which
    ``Speedups.fold_projector`` spares them; a mean commutes with that map and leaves a tenth of the
    rows. Neither the question nor the sound is looked at: the allocation serves every question, and
    frames without sound have none to compare.

    Args:
        frames, anchors: int64 ``[M]``, frames of one video and the anchor of each.

    Returns:
        M floats from 0 to 2, or NaN where tokens are not finite.
    """
    if len(frames) == 0:
        return []
    used, group = anchors.unique(return_inverse=True)
    asked = _pooled(features, used, num_bins)  # [A, K * D]
    changes = []
    for some, row in zip(
        frames.split(FRAMES_AT_A_TIME), group.split(FRAMES_AT_A_TIME), strict=True
    ):
        seen = _pooled(features, some, num_bins)
        changes.append(1 - F.cosine_similarity(seen, asked[row.to(asked.device)], dim=1))
    return torch.cat(changes).tolist()


def _pooled(features: VideoFeatures, frames: Tensor, num_bins: int) -> Tensor:
    """``[M, K * D]`` pooled tokens of frames of one video, in fp32 (fp64 for fp64)."""
    values = features.visual.values[:, : features.visual_lengths[int(frames[0])]]
    pooled = anchor_queries(values, num_bins, index=frames.to(values.device))
    pooled = pooled.to(torch.promote_types(pooled.dtype, torch.float32))
    return features.visual.apply_map(pooled).flatten(1)


def allocate(changes: Sequence[float], num_context_tokens: int, most: int) -> list[int]:
    """Tokens of each frame: ``least + (changes' share of the rest)``, ``most`` at most.

    In whole numbers throughout, so the same changes give the same tokens everywhere: a frame counts
    ``1 + round(change / CHANGE_UNIT)``, shares are rounded down, and what that leaves goes to the
    largest remainders (of equal ones to the earlier frame). What a frame would have above ``most``
    is shared by the others.

    Args:
        changes: M floats; what is not finite counts as the mean of the others, below 0 as 0.
        num_context_tokens: K.
        most: of one frame, at least K.

    Returns:
        M ints from ``least_tokens(K)`` to ``most`` whose sum is ``K * M``: never fewer for a larger
        change, K each where all changes are equal.
    """
    weights = _weights(changes)
    least = least_tokens(num_context_tokens)
    tokens = [most] * len(weights)
    free, left = list(range(len(weights))), num_context_tokens * len(weights)
    while free:
        spare, total = left - least * len(free), sum(weights[i] for i in free)
        full = {i for i in free if spare * weights[i] >= (most - least) * total}
        if not full:
            break
        free = [i for i in free if i not in full]
        left -= most * len(full)
    if not free:
        return tokens
    remainders = []
    for i in free:
        share, remainder = divmod(spare * weights[i], total)
        tokens[i] = least + share
        remainders.append((-remainder, i))
    missing = left - sum(tokens[i] for i in free)
    for _, i in sorted(remainders)[:missing]:
        tokens[i] += 1
    return tokens


def _weights(changes: Sequence[float]) -> list[int]:
    finite = [max(0.0, c) for c in changes if isfinite(c)]
    usual = sum(finite) / len(finite) if finite else 0.0
    known = (max(0.0, c) if isfinite(c) else usual for c in changes)
    return [1 + round(c / CHANGE_UNIT) for c in known]


def entries(plan: ContextPlan) -> tuple[Tensor, list[int], Tensor]:
    """Who asks, where frames differ in length: one entry per anchor and number of tokens.

    Returns:
        int64 ``[E]`` rows of ``plan.anchors``, E numbers of tokens, and int64 ``[M]``, the entry of
        each dynamic frame.
    """
    assert plan.compressed_lengths is not None
    pairs = torch.stack([plan.dynamic_anchor, plan.compressed_lengths], dim=1).long()
    pairs, group = pairs.unique(dim=0, return_inverse=True)
    return pairs[:, 0], pairs[:, 1].tolist(), group


def slots(length: int, most: int) -> list[int]:
    """The bin of each of ``most`` query slots: the ``length`` bins in order, then evenly spread
    repeats of them."""
    extra = most - length
    return [*range(length), *((2 * j + 1) * length // (2 * extra) for j in range(extra))]

# SPDX-License-Identifier: Apache-2.0
"""Scene boundaries in plain PyTorch: sorts whose shapes depend on sizes only, so that nothing waits
for the device."""

from __future__ import annotations

import torch


def select(
    similarity: torch.Tensor,  # [P]
    num_boundaries: int,
    pair_video: torch.Tensor,  # int64 [P]: video of each pair, B where the pair straddles two
    lengths: torch.Tensor,  # [B]: frames of each video
    pair_start: torch.Tensor,  # [B]: frames before each video, i.e. its first pair
    threshold: float | None,
) -> torch.Tensor:
    """The ``num_boundaries`` lowest pairs of every video, as frame numbers in rising order."""
    videos = lengths.shape[0]
    padded = lengths.to(torch.int32)[:, None].repeat(1, num_boundaries)  # [B, S]
    if videos == 0:
        return padded
    value = similarity.masked_fill(similarity.isnan(), float("-inf"))
    by_value = torch.argsort(value, stable=True)  # of equals the earlier first
    order = by_value[torch.argsort(pair_video[by_value], stable=True)]  # by video, then by value
    video = pair_video[order]
    every = torch.arange(videos, device=similarity.device)
    first = torch.searchsorted(video, every)  # [B]: where each video's pairs begin in `order`
    row = video.clamp_max(videos - 1)
    rank = torch.arange(video.shape[0], device=similarity.device) - first[row]
    chosen = (video < videos) & (rank < num_boundaries)
    if threshold is not None:
        chosen = chosen & (value[order] < threshold)
    # Pairs that are not chosen all write to one extra slot at the end, which is dropped.
    slot = torch.where(chosen, row * num_boundaries + rank, videos * num_boundaries)
    frame = (order - pair_start[row] + 1).to(torch.int32)
    flat = torch.cat([padded.flatten(), padded.new_zeros(1)]).scatter(0, slot, frame)
    return flat[:-1].view(videos, num_boundaries).sort(dim=1).values


def scene_boundaries(
    similarity: torch.Tensor,
    num_boundaries: int,
    cu_frames: torch.Tensor | None = None,
    threshold: float | None = None,
) -> torch.Tensor:
    similarity = similarity.detach()
    pairs = similarity.shape[0]
    if cu_frames is None:
        return single_video(similarity, num_boundaries, pairs + 1, threshold)
    cu = cu_frames.to(torch.int64)
    frame = torch.arange(pairs + 1, device=similarity.device)
    video = torch.bucketize(frame, cu, right=True) - 1  # [F]; empty videos own no frame
    inside = (video[:-1] == video[1:]) & (video[1:] >= 0)
    pair_video = torch.where(inside, video[:-1], cu.shape[0] - 1)
    return select(similarity, num_boundaries, pair_video, cu.diff(), cu[:-1], threshold)


def single_video(
    similarity: torch.Tensor, num_boundaries: int, frames: int, threshold: float | None
) -> torch.Tensor:
    pair_video = torch.zeros_like(similarity, dtype=torch.int64)
    lengths = pair_video.new_full((1,), frames)
    start = pair_video.new_zeros((1,))
    return select(similarity.detach(), num_boundaries, pair_video, lengths, start, threshold)


def below(
    threshold: float | None,
    boundaries: torch.Tensor,
    similarity: torch.Tensor,
    frames: int,
    cu_frames: torch.Tensor | None,
) -> torch.Tensor:
    """The boundaries [B, S] whose similarity is below the threshold: of the S lowest pairs those
    remain that would have been found with it."""
    start: torch.Tensor | int = 0
    lengths: torch.Tensor | int = frames
    if cu_frames is not None:
        start, lengths = cu_frames[:-1, None], cu_frames.diff()[:, None]
    assert threshold is not None
    value = similarity.masked_fill(similarity.isnan(), float("-inf"))
    value = torch.cat([value, value.new_zeros(1)])  # there may be no pair
    pair = (start + boundaries - 1).clamp(0, similarity.shape[0])
    kept = (boundaries < lengths) & (value[pair] < threshold)
    return torch.where(kept, boundaries, lengths).to(torch.int32).sort(dim=1).values

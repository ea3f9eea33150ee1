# SPDX-License-Identifier: Apache-2.0
"""VideoFeatures: other videos of the same frames, without encoding anything again."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tdc.encoder.features import VideoFeatures
from tdc.encoder.segment import segment
from tdc.encoder.visual_tokens import VisualTokens

FRAMES, TOKENS, WIDTH, DINO = 11, 4, 6, 8


def features(frames: int = FRAMES, videos: int = 1) -> VideoFeatures:
    generator = torch.Generator().manual_seed(0)
    total = frames * videos
    dinov2 = torch.randn(total, 3, DINO, generator=generator)
    return VideoFeatures(
        visual=VisualTokens(torch.randn(total, TOKENS, WIDTH, generator=generator)),
        visual_lengths=tuple(2 + i % 3 for i in range(total)),
        segmentation=segment(dinov2, 3, [i * frames for i in range(videos + 1)]),
        times=tuple(0.5 * i for i in range(total)),
        audio=torch.randn(total, 2, WIDTH, generator=generator),
        audio_lengths=tuple(2 * (i % 2) for i in range(total)),
        kinds=("video",) * videos,
        dinov2=dinov2,
    )


def test_sizes():
    whole = features(videos=2)
    assert whole.num_videos == 2 and whole.cu_frames == (0, 11, 22)
    assert whole.static_lengths()[:4] == [2, 3 + 2, 4, 2 + 2]
    assert replace(whole, audio=None, audio_lengths=()).static_lengths()[:3] == [2, 3, 4]


def test_segmentation_of_each_video():
    both = features(videos=2)
    for video in range(2):
        alone = segment(both.dinov2[video * FRAMES : (video + 1) * FRAMES], 3)
        assert both.segmentation.scene_starts(video) == alone.scene_starts()
        assert len(alone.scene_starts()) == 3
        torch.testing.assert_close(both.segmentation.video_similarity(video), alone.similarity)
    assert both.segmentation.similarity[FRAMES - 1] == float("inf")


def test_threshold_keeps_similar_frames_together():
    dinov2 = torch.ones(6, 1, 4)
    dinov2[4:, :, :2] = -1.0
    assert segment(dinov2, 3).scene_starts() == [0, 1, 4]
    assert segment(dinov2, 3, threshold=0.5).scene_starts() == [0, 4]


@given(st.integers(1, 30), st.integers(1, 12))
def test_split_covers_the_video_once(frames, parts):
    split = features(frames).split(parts, 3, None)
    assert split.num_videos == min(parts, frames)
    sizes = [b - a for a, b in zip(split.cu_frames[:-1], split.cu_frames[1:], strict=True)]
    assert sum(sizes) == frames and max(sizes) - min(sizes) <= 1
    assert split.times == features(frames).times
    assert split.kinds == ("video",) * split.num_videos


def test_split_keeps_every_frames_tokens_and_cuts_each_part_alone():
    whole = features()
    split = whole.split(3, 2, None)
    ours, wanted = split.visual.values, whole.visual.values
    assert torch.equal(ours, wanted) and torch.equal(split.audio, whole.audio)
    assert ours.data_ptr() == wanted.data_ptr()  # a view: nothing is copied
    assert split.visual_lengths == whole.visual_lengths
    for part in range(3):
        first, last = split.cu_frames[part : part + 2]
        alone = segment(whole.dinov2[first:last], 2)
        assert split.segmentation.scene_starts(part) == alone.scene_starts()


def test_sample_is_evenly_spaced_and_cut_anew():
    whole = features()
    few = whole.sample(4, 2, None)
    rows = [0, 2, 5, 8]
    assert few.times == tuple(0.5 * r for r in rows)
    assert torch.equal(few.visual.values, whole.visual.values[rows])
    assert torch.equal(few.audio, whole.audio[rows])
    assert few.visual_lengths == tuple(whole.visual_lengths[r] for r in rows)
    assert few.audio_lengths == tuple(whole.audio_lengths[r] for r in rows)
    # Neighbours of the sample were no neighbours before.
    assert few.segmentation.scene_starts() == segment(whole.dinov2[rows], 2).scene_starts()
    torch.testing.assert_close(
        few.segmentation.similarity, segment(whole.dinov2[rows], 2).similarity
    )
    assert whole.sample(99, 3, None).times == whole.times


def test_what_cannot_be_done_is_said():
    with pytest.raises(ValueError, match="keep_dinov2=True"):
        replace(features(), dinov2=None).split(2, 3, None)
    for call in ("split", "sample"):
        with pytest.raises(ValueError, match=f"{call}.. takes features of one video, got 2"):
            getattr(features(videos=2), call)(2, 3, None)


def test_moving_is_free_when_already_there():
    whole = features()
    assert whole.to("cpu") is whole
    moved = whole.to("meta")
    assert {t.device.type for t in (moved, moved.audio, moved.dinov2)} == {"meta"}
    assert moved.segmentation is whole.segmentation

# SPDX-License-Identifier: Apache-2.0
"""How many frames a prompt leaves room for, and that they really fit."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from toy import BEATS, toy_config

from tdc import InputError
from tdc.media.sampling import sample_indices
from tdc.processor.budget import context_room, frame_budget
from tdc_kernels import plan_context


@given(st.integers(1, 400), st.integers(1, 300))
@example(260, 224)
def test_samples_are_evenly_spaced(length, most):
    rows = sample_indices(length, most)
    assert len(rows) == min(length, most) and rows[0] == 0 and rows[-1] < length
    gaps = {b - a for a, b in pairwise(rows)}
    assert gaps <= {length // most, length // most + 1} if length > most else gaps <= {1}


def test_samples_truncate_in_double_precision():
    assert sample_indices(5, 5) == [0, 1, 2, 3, 4]
    assert sample_indices(10, 4) == [0, 2, 5, 7]
    assert sample_indices(260, 224)[:8] == [0, 1, 2, 3, 4, 5, 6, 8]


def test_room_beside_the_text():
    config = toy_config(max_context_length=100, answer_reserve=16)
    assert context_room(config, 30) == 54
    assert context_room(config, 83) == 1
    with pytest.raises(InputError, match=r"the question has 84 tokens.*leaves 84") as error:
        context_room(config, 84)
    assert "\n" not in str(error.value)


budgets = st.fixed_dictionaries(
    {
        "max_context_length": st.integers(60, 1500),
        "num_scenes": st.integers(1, 12),
        "scene_window": st.none() | st.integers(1, 9),
        "num_context_tokens": st.integers(1, 8),
        "static_frames": st.booleans(),
        "audio_config": st.none() | st.just(BEATS),
        "max_frames": st.integers(1, 60),
    }
)


@given(budgets, st.integers(2, 30), st.integers(1, 25), st.integers(1, 3), st.data())
def test_exact_budget_is_the_largest_that_never_trims(fields, prompt, frame, videos, data):
    """Whatever scenes are found, as long as all of them are."""
    config = toy_config(frame_budget="exact", **fields)
    if config.max_context_length - config.answer_reserve - prompt < 1:
        return
    frames = frame_budget(config, prompt + videos - 1, frame, videos)
    assert 1 <= frames <= config.max_frames
    room = context_room(config, prompt - 1) // videos
    cuts = sorted(
        data.draw(
            st.sets(
                st.integers(1, max(1, frames - 1)),
                min_size=min(config.num_boundaries, frames - 1),
                max_size=min(config.num_boundaries, frames - 1),
            )
        )
    )
    tokens = tokens_with(config, cuts, frames, frame)
    if frames > 1:
        assert tokens <= room
    if frames < config.max_frames:  # one frame more could be too long
        assert longest(config, frames + 1, frame) > room


def tokens_with(config, cuts, frames, frame) -> int:
    static = frame + (config.audio_tokens_per_frame if config.audio_config else 0)
    row = cuts + [frames] * (config.num_boundaries - len(cuts))
    plan = plan_context(
        torch.tensor([row], dtype=torch.int32).reshape(1, config.num_boundaries),
        [0, frames],
        config.scene_window,
        static if config.static_frames else None,
        config.num_context_tokens,
    )
    return plan.total_tokens


def longest(config, frames, frame) -> int:
    """Most windows: cuts that leave as many remainders as possible, tried by brute force over the
    number of frames in all scenes but the first."""
    most = 0
    for shift in range(0, max(1, frames)):
        count = min(config.num_boundaries, frames - 1)
        window = config.scene_window or frames
        # Scenes of one frame at the end waste no window; scenes of window + 1 frames add one each.
        for size in {1, window + 1}:
            cuts = [frames - shift - size * i for i in range(count)]
            cuts = sorted({c for c in cuts if 0 < c < frames})
            for free in range(1, frames):
                if len(cuts) >= count:
                    break
                cuts = sorted({*cuts, free})
            most = max(most, tokens_with(config, cuts, frames, frame))
    return most


def test_exact_budget_of_the_paper():
    """Square video, 24 scenes of 156 static tokens, 17 tokens for each other frame."""
    config = toy_config(
        frame_grid=12,
        connector_grid=12,
        tower_grid=24,
        num_scenes=24,
        num_context_tokens=16,
        max_context_length=8192,
        max_frames=1000,
        audio_config=None,
    )
    room = 8192 - 16 - 29
    assert frame_budget(config, 30) == 24 + (room - 24 * 157) // 17
    config.audio_config = BEATS
    config.audio_tokens_per_frame = 50
    assert frame_budget(config, 30) == 24 + (room - 24 * 207) // 17
    assert frame_budget(config, 30, 84) > frame_budget(config, 30)  # a landscape costs less
    assert frame_budget(config, 30, num_videos=2) < frame_budget(config, 30)


def test_released_estimate():
    config = toy_config(
        frame_budget="release", num_context_tokens=16, max_context_length=8192, audio_config=None
    )
    assert frame_budget(config, 24) == 224  # 254, but 224 is the most
    config.max_frames = 1000
    assert frame_budget(config, 24) == (8192 - 24 - 16) // 32
    config.audio_config = BEATS
    assert frame_budget(config, 24) == (8192 - 24 - 16) // 38
    config.static_frames = False
    assert frame_budget(config, 24) == (8192 - 24 - 16) // 16
    assert frame_budget(config, 9000) == 1

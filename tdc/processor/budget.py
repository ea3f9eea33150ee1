# SPDX-License-Identifier: Apache-2.0
"""Token budget: how many frames a video may bring, and how much room it finds in the prompt."""

from __future__ import annotations

from tdc_kernels import context_length

from ..config import TDCConfig
from ..errors import InputError

# The release estimates a frame by 144 visual and 50 audio tokens, whatever the configuration says.
_RELEASE_STATIC, _RELEASE_AUDIO, _RELEASE_CHUNK = 144, 50, 8


def context_room(config: TDCConfig, text_tokens: int) -> int:
    """Tokens left for the video beside ``text_tokens`` of prompt and the reserved answer.

    Raises:
        InputError: the prompt alone fills the context.
    """
    room = config.max_context_length - config.answer_reserve - text_tokens
    if room < 1:
        limit = config.max_context_length - config.answer_reserve
        raise InputError(
            f"the question has {text_tokens} tokens, but the model's context of "
            f"{config.max_context_length} leaves {limit} for question and video; "
            "ask a shorter question"
        )
    return room


def frame_budget(
    config: TDCConfig, prompt_tokens: int, frame_tokens: int | None = None, num_videos: int = 1
) -> int:
    """Most frames a video may bring into a context with ``prompt_tokens`` of prompt.

    Args:
        prompt_tokens: length of the prompt, every placeholder counted as one token.
        frame_tokens: visual tokens of a whole frame, newlines included; the square picture's if
            None. Used by ``"exact"`` only.
        num_videos: videos in this prompt, which share the room. Used by ``"exact"`` only.

    Returns:
        At least 1. ``"exact"``: the largest number that needs no trimming when every scene is
        found; ``"release"``: the released code's estimate.
    """
    if config.frame_budget == "release":
        return _release_frame_budget(config, prompt_tokens)
    room = context_room(config, prompt_tokens - num_videos) // num_videos
    if frame_tokens is None:
        frame_tokens = config.frame_grid * (config.frame_grid + 1)
    low, high = 1, config.max_frames
    while low < high:  # the count grows with the number of frames: bisection
        middle = (low + high + 1) // 2
        if _largest_context(config, middle, frame_tokens) <= room:
            low = middle
        else:
            high = middle - 1
    return low


def _largest_context(config: TDCConfig, num_frames: int, frame_tokens: int) -> int:
    static = frame_tokens + (config.audio_tokens_per_frame if config.audio_config else 0)
    lengths = context_length(
        config.num_boundaries,
        [0, num_frames],
        config.scene_window,
        static if config.static_frames else None,
        config.num_context_tokens,
    )
    return int(lengths[0])


def _release_frame_budget(config: TDCConfig, prompt_tokens: int) -> int:
    if config.static_frames:
        chunk = _RELEASE_STATIC + (_RELEASE_CHUNK - 1) * config.num_context_tokens
        chunk += _RELEASE_AUDIO if config.audio_config else 0
        per_frame = chunk // _RELEASE_CHUNK
    else:
        per_frame = 16
    room = config.max_context_length - prompt_tokens - config.answer_reserve
    return min(config.max_frames, max(1, room // per_frame))

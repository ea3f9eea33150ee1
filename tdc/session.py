# SPDX-License-Identifier: Apache-2.0
"""A video through the question-independent half of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from .answer import chat_prompt
from .checkpoints.load import Loaded
from .encoder.features import VideoFeatures
from .media.video import probe
from .model import MEDIA_INPUTS

Update = Callable[[int, int], None]
Progress = Callable[[str], AbstractContextManager[Update]]


def no_progress(what: str) -> AbstractContextManager[Update]:
    return nullcontext(lambda done, total: None)


@dataclass(frozen=True)
class Encoded:
    """An encoded video; ``inputs`` is what the processor made of the file."""

    features: VideoFeatures
    inputs: Any
    duration: float  # seconds, the whole video


def encode_video(
    loaded: Loaded,
    video: str,
    question: str = "",
    audio: str | None = None,
    progress: Progress = no_progress,
) -> Encoded:
    """Decode and encode a video file on as many frames as leave room for ``question``."""
    model, processor = loaded.model, loaded.processor
    with progress("decoding the video") as update:
        inputs = processor(
            text=chat_prompt(processor, question),
            videos=[video],
            audio=[audio],
            question=question,
            progress=update,
        )
    media = {name: inputs[name] for name in MEDIA_INPUTS if name in inputs}
    media = {k: v.to(model.device) if hasattr(v, "to") else v for k, v in media.items()}
    frames = int(inputs["media_frames"].sum())
    with (
        torch.no_grad(),
        progress("encoding the frames") as update,
        watch_towers(model, frames, update),
    ):
        features = model.encode_video(**media)
    return Encoded(features, inputs, max(probe(video).duration, features.times[-1]))


@contextmanager
def watch_towers(model: Any, num_frames: int, update: Update) -> Iterator[None]:
    """Report frames as they leave the towers; a frame through one of two is half done."""
    encoder = getattr(model, "video_encoder", None)
    towers = [model] if encoder is None else [encoder.siglip, encoder.dinov2]
    towers = [tower for tower in towers if tower is not None]
    done = 0

    def count(_module: Any, inputs: tuple[Any, ...], *_: Any) -> None:
        nonlocal done
        done += len(inputs[0])
        update(done, num_frames * len(towers))

    handles = [tower.model.register_forward_hook(count) for tower in towers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

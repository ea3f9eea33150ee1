# SPDX-License-Identifier: Apache-2.0
"""A video through the question-independent half of the model, with progress bars."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from tdc.commands._terminal import Update, activity, clean, progress
from tdc.features import VideoFeatures
from tdc.loading import Loaded, load_model
from tdc.model import MEDIA_INPUTS
from tdc.processor import TDCProcessor
from tdc.video import probe


@dataclass(frozen=True)
class Encoded:
    """An encoded video; ``inputs`` is what the processor made of the file."""

    features: VideoFeatures
    inputs: Any
    duration: float  # seconds, the whole video


def load(arguments: Any) -> Loaded:
    """The model that ``--model``, ``--device`` and ``--dtype`` ask for."""
    with activity("loading the model"):
        return load_model(arguments.model, arguments.device, arguments.dtype)


def encode_video(
    loaded: Loaded, video: str, question: str = "", audio: str | None = None
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


def chat_prompt(processor: TDCProcessor, question: str) -> str:
    content = [{"type": "video"}, {"type": "text", "text": question}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )


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


def generation_options(arguments: Any) -> dict[str, Any]:
    """Options of ``model.generate`` for ``--max-new-tokens``, ``--temperature``, ``--seed``."""
    options: dict[str, Any] = {"max_new_tokens": arguments.max_new_tokens, "do_sample": False}
    if arguments.temperature > 0:
        torch.manual_seed(arguments.seed)
        options |= {"do_sample": True, "temperature": arguments.temperature}
    return options


def one_line(text: str) -> str:
    """Text of a model for a table or a list: no control characters, no line breaks."""
    return " ".join(clean(text).split())

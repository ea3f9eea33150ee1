# SPDX-License-Identifier: Apache-2.0
"""The two ways of the pipeline benchmark, ours and the authors', on one model and one video, and
the check that both come to the same prompt and the same first token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tdc.encoder.features import VideoFeatures
from tdc.model import TDCForConditionalGeneration
from tdc.processor.media_inputs import Medium, load_video, pack_media
from tdc.processor.processor import TDCProcessor
from tdc.profiling import now, stage

from ..benchmark import Refused, Row
from ..peers import release_compressor, release_pipeline
from . import pipeline_models
from .pipeline_models import QUESTION, SCALES, Scale

# Largest relative error of a prompt token, and of the first token's logits. Half precision: from
# the connector on, both round at different places. Seen at the small scale on a CPU: 5e-7 and 4e-7
# in fp32, 1e-2 and 7e-3 in bf16, with far fewer layers. Another token would be off by 1.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.15}


@dataclass(frozen=True)
class Setup:
    """Weights and inputs that both ways share; ``clip``: the video as a file, if there is one."""

    scale: Scale
    model: TDCForConditionalGeneration
    processor: TDCProcessor
    decoded: Medium
    clip: Path | None
    device: str
    dtype: torch.dtype

    def ask(self, question: str = QUESTION) -> dict[str, Tensor]:
        """Ids of the prompt and of the question on the device."""
        content = [{"type": "video"}, {"type": "text", "text": question}]
        text = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        ids = self.processor.encode_prompts([text], question)
        return {name: x.to(self.device) for name, x in ids.items()}

    def load(self) -> Medium:
        """The clip, decoded."""
        frames = len(self.decoded.frames)
        return load_video(self.model.config, self.clip, None, 0, max_frames=frames)


Way = Callable[[Setup, Medium], Tensor]  # to the prompt [1, T, D]


def make(scale: str, llm: str, device: str, dtype: torch.dtype, frames: int, folder: Path) -> Setup:
    """Model, video and, with PyAV, its file in ``folder``."""
    model, processor = pipeline_models.build(scale, llm, device, dtype)
    found = SCALES[scale]
    video = pipeline_models.video(frames, found.side, min(frames, model.config.num_scenes))
    times = [float(t) for t in range(frames)]
    size = (found.side, found.side)
    medium = Medium(video.frames, size, times, frames, True, video.waveform)
    clip = None
    if pipeline_models.HAS_AV:
        clip = folder / "clip.mp4"
        pipeline_models.write_clip(clip, video)
    return Setup(found, model, processor, medium, clip, device, dtype)


# ---------------------------------------------------------------- the two ways


@stage("resize frames")
def our_pixels(setup: Setup, medium: Medium) -> dict[str, Any]:
    media = pack_media(setup.model.config, [medium])
    return {name: x.to(setup.device) for name, x in media.items()}


def our_features(setup: Setup, medium: Medium) -> VideoFeatures:
    return setup.model.encode_video(**our_pixels(setup, medium))


def our_question(setup: Setup, features: VideoFeatures, question: str = QUESTION) -> Tensor:
    asked: dict[str, Any] = setup.ask(question)
    return setup.model.prepare_prompt(**asked, features=features).inputs_embeds


def ours(setup: Setup, medium: Medium) -> Tensor:
    return our_question(setup, our_features(setup, medium))


def release(setup: Setup, medium: Medium) -> Tensor:
    return release_pipeline.prompt(setup.model, medium.frames, medium.waveform, *_ids(setup))


def _ids(setup: Setup) -> tuple[Tensor, Tensor]:
    asked = setup.ask()
    return asked["input_ids"][0], asked["question_ids"][0]


def of_pixels(setup: Setup) -> dict[str, Callable[[], Tensor]]:
    """Both ways from frames that are resized and on the device already."""
    model, medium = setup.model, setup.decoded
    mine, theirs = our_pixels(setup, medium), release_pipeline.pixels(model, medium.frames)

    def ours() -> Tensor:
        return token(setup, our_question(setup, model.encode_video(**mine)))

    def release() -> Tensor:
        ids = _ids(setup)
        return token(setup, release_pipeline.prompt_of_pixels(model, theirs, medium.waveform, *ids))

    return {"ours": ours, "release": release}


WAYS: dict[str, Way] = {"ours": ours, "release": release}


@stage("prefill")
def prefill(setup: Setup, prompt: Tensor) -> Any:
    """The language model's first call: logits of the first token, and its cache."""
    return setup.model.language_model(inputs_embeds=prompt, use_cache=True, logits_to_keep=1)


def first_token(setup: Setup, way: Way, source: Callable[[], Medium]) -> Tensor:
    return token(setup, way(setup, source()))


def token(setup: Setup, prompt: Tensor) -> Tensor:
    """The first token, greedily."""
    return prefill(setup, prompt).logits[0, -1].argmax()


def decode(setup: Setup, out: Any) -> float:
    """Tokens per second after the first one, greedily, one by one."""
    steps = setup.scale.new_tokens - 1
    begin = now()
    for _ in range(steps):
        token = out.logits[:, -1:].argmax(-1)
        out = setup.model.language_model(
            input_ids=token, past_key_values=out.past_key_values, use_cache=True
        )
    return steps / (now() - begin)


# ---------------------------------------------------------------- agreement


def check(setup: Setup) -> Row:
    """Compare the prompts and the first token's logits of both ways; also the warm-up.

    In half precision the authors' cosines are rounded to 8 bits, so that neighbours tie and their
    cuts may be others; the prompts are then compared on ours.

    Raises:
        Refused: cuts in fp32, prompts or logits differ.
    """
    model, tolerance = setup.model, TOLERANCE[setup.dtype]
    medium = setup.decoded
    features = our_features(setup, medium)
    got = our_question(setup, features)
    images = release_pipeline.pixels(model, medium.frames)
    dinov2, visual, audio = release_pipeline.encode(model, images, medium.waveform)
    starts = features.segmentation.scene_starts()
    theirs = release_compressor.segment(dinov2, model.config.num_boundaries)
    if starts != theirs and setup.dtype == torch.float32:
        raise Refused(f"cuts differ: {starts} against the authors' {theirs}")
    ids, question = _ids(setup)
    tokens = release_pipeline.context(model, visual, audio, starts, ids, question)
    expected = release_pipeline.assemble(model, tokens, ids)
    if got.shape != expected.shape:
        raise Refused(f"prompts of {got.shape[1]} and {expected.shape[1]} tokens")
    error = relative_error(got, expected)
    logits, wanted = (prefill(setup, x).logits[:, -1] for x in (got, expected))
    logit_error = relative_error(logits, wanted)
    for what, value in (("prompts", error), ("logits", logit_error)):
        if not value <= tolerance:  # also catches NaN
            raise Refused(f"{what} differ by {value:.1e}, allowed are {tolerance:.0e}")
    return {
        "scenes": len(starts),
        "cuts_that_differ": len(set(starts) - set(theirs)),
        "prompt_tokens": got.shape[1],
        "context_tokens": len(tokens),
        "prompt_error": error,
        "logit_error": logit_error,
    }


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Of the rows of ``[..., D]``: the largest ``|a - b| / |b|``."""
    difference = (got.float() - expected.float()).norm(dim=-1)
    return (difference / expected.float().norm(dim=-1).clamp_min(1e-20)).max().item()

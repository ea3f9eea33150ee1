# SPDX-License-Identifier: Apache-2.0
"""One question per encoded video to one answer each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .encoder.features import VideoFeatures
from .model import TDCForConditionalGeneration
from .processor.processor import TDCProcessor


def ask(
    model: TDCForConditionalGeneration,
    processor: TDCProcessor,
    features: VideoFeatures,
    texts: Sequence[str],
    questions: Sequence[str] | None = None,
    **generate: Any,
) -> list[str]:
    """Answers about encoded videos: one text per video of ``features``.

    Args:
        features: what ``model.encode_video`` returned; reused as it is, for any number of calls.
        texts: what the language model is asked.
        questions: what the compressor reads beside the frames; default: the texts.
        generate: options of ``model.generate``.
    """
    prompts = [chat_prompt(processor, text) for text in texts]
    inputs = processor.encode_prompts(prompts, list(questions or texts))
    inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
    ids = model.generate(**inputs, features=features, **generate)
    return [a.strip() for a in processor.batch_decode(ids, skip_special_tokens=True)]


def chat_prompt(processor: TDCProcessor, text: str) -> str:
    """The chat template around one video and ``text``."""
    content = [{"type": "video"}, {"type": "text", "text": text}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )

# SPDX-License-Identifier: Apache-2.0
"""Models and videos of the pipeline benchmark: the paper's sizes, and smaller ones of the same
structure. Weights are random; nothing that is timed depends on their values."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tdc.config import RELEASE_BEHAVIOUR, TDCConfig
from tdc.model import TDCForConditionalGeneration
from tdc.processor.media_inputs import SAMPLE_RATE
from tdc.processor.processor import TDCProcessor
from tdc.testing import byte_tokenizer, character_bert_tokenizer, small_config

from .sizes import DINOV2_GIANT, SIGLIP_SO400M

WITHOUT_AV = "PyAV is not installed"
HAS_AV = importlib.util.find_spec("av") is not None
# 30 tokens for the language model (a byte each) and for the Q-Former (28 letters, begin and end).
QUESTION = "Summarise everything happening"
SECOND_QUESTION = "Enumerate allmoving characters"
CLIP_FPS = 8

LANGUAGE_MODELS: dict[str, dict[str, Any]] = {
    "qwen2-7b": {
        "model_type": "qwen2",
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
    },
    "llama-3.2-3b": {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
    },
}
# Answers never end early.
NO_MARKS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}


@dataclass(frozen=True)
class Scale:
    """Sizes of one run. ``side``: pixels of the square video; ``shrink``: what a smaller scale
    changes in the paper's configuration, the language model's under ``text_config``."""

    frames: int
    side: int
    new_tokens: int
    segment_tokens: int  # longest answer of an LVCoT segment
    rounds: int
    shrink: dict[str, Any] = field(default_factory=dict)


def _vit(width: int, layers: int, heads: int) -> dict[str, int]:
    return {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}


SCALES = {
    "paper": Scale(frames=224, side=480, new_tokens=64, segment_tokens=128, rounds=3),
    # About a minute on two cores: narrow and shallow, all token counts the paper's.
    "small": Scale(
        frames=48,
        side=240,
        new_tokens=8,
        segment_tokens=4,
        rounds=1,
        shrink={
            "text_config": {
                **_vit(512, 4, 8),
                "vocab_size": 1024,
                "intermediate_size": 1408,
                "num_key_value_heads": 2,
            },
            "siglip_config": {**_vit(96, 3, 4), "intermediate_size": 256},
            "dinov2_config": _vit(96, 3, 4),
            "audio_config": {"encoder_layers": 2},
            "qformer_config": {"num_hidden_layers": 4, "vocab_size": 200},
            "connector_hidden_size": 128,
            "connector_heads": 4,
            "num_scenes": 7,
        },
    ),
    # Seconds on one core: for tests.
    "tiny": Scale(frames=12, side=64, new_tokens=3, segment_tokens=2, rounds=1),
}


def config(scale: str, llm: str) -> TDCConfig:
    """Of the released model around one of ``LANGUAGE_MODELS``, or of a smaller ``scale``."""
    text = {**LANGUAGE_MODELS[llm], **NO_MARKS}
    if scale == "tiny":
        return _tiny(text)
    parts: dict[str, Any] = {
        "siglip_config": {**SIGLIP_SO400M, "num_hidden_layers": 27},
        "dinov2_config": {**DINOV2_GIANT, "num_hidden_layers": 40},
        "qformer_config": {},  # BERT-base
        "audio_config": {"encoder_layers": 12},
    }
    shrink = copy.deepcopy(SCALES[scale].shrink)
    text |= shrink.pop("text_config", {})
    for name in parts:
        parts[name] |= shrink.pop(name, {})
    # The release's code makes as many cuts as the paper's model has scenes: 24.
    fields = {"num_scenes": 25, **RELEASE_BEHAVIOUR, **shrink}
    return TDCConfig(text_config=text, **parts, **fields)


def _tiny(text: dict[str, Any]) -> TDCConfig:
    """The command's embedded configuration with small pictures, and the release's behaviour."""
    found = small_config().to_dict()
    size = {
        name: found["text_config"][name]
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    }
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    fields = {
        name: found[name]
        for name in ("qformer_config", "audio_config", "connector_hidden_size", "connector_heads")
    }
    fields["qformer_config"].pop("model_type", None)
    vit = {**_vit(48, 2, 4), "image_size": 56, "patch_size": 14}
    return TDCConfig(
        text_config={**text, **size, **heads},
        siglip_config={**vit, "intermediate_size": 96},
        dinov2_config={**vit, "mlp_ratio": 2},
        siglip_image_size=56,
        dinov2_image_size=56,
        **{**fields, "connector_depth": 2, "num_scenes": 3, "max_context_length": 800},
        **RELEASE_BEHAVIOUR,
    )


def build(
    scale: str, llm: str, device: str, dtype: torch.dtype, seed: int = 0
) -> tuple[TDCForConditionalGeneration, TDCProcessor]:
    """Random weights, made on the device in their dtype: 7B in fp32 on a host are 30 GB."""
    found = config(scale, llm)
    torch.manual_seed(seed)
    with default_dtype(dtype), torch.device(device):
        model = TDCForConditionalGeneration(found)
    moved: nn.Module = model  # what a constructor put elsewhere follows
    moved.to(device=device, dtype=dtype).eval()
    return model, TDCProcessor(byte_tokenizer(), character_bert_tokenizer(), found)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


# ---------------------------------------------------------------- video


@dataclass(frozen=True)
class DecodedVideo:
    """One frame a second, and the sound."""

    frames: np.ndarray  # uint8 [L, side, side, 3]
    waveform: np.ndarray  # fp32 [L * 16000]

    @property
    def seconds(self) -> int:
        return len(self.frames)


def video(frames: int, side: int, scenes: int, seed: int = 0) -> DecodedVideo:
    """Square pictures in ``scenes`` scenes unlike each other, a sound for each; some movement."""
    rng = np.random.default_rng(seed)
    cuts = np.sort(rng.permutation(frames - 1)[: scenes - 1] + 1)
    scene = np.zeros(frames, dtype=int)
    scene[cuts] = 1
    scene = scene.cumsum()
    looks = rng.integers(0, 256, (scenes, 8, 8, 3), dtype=np.uint8)
    block = -(-side // 8)
    pictures = np.empty((frames, side, side, 3), dtype=np.uint8)
    for t in range(frames):
        picture = looks[scene[t]].repeat(block, 0).repeat(block, 1)[:side, :side]
        pictures[t] = picture
        size = side // 8
        at = (t * size // 2) % (side - size)  # a white square walks
        pictures[t, at : at + size, at : at + size] = 255
    time = np.arange(frames * SAMPLE_RATE) / SAMPLE_RATE
    pitch = rng.uniform(100, 2000, scenes)[scene].repeat(SAMPLE_RATE)  # Hz
    sound = 0.3 * np.sin(2 * np.pi * pitch * time) + 0.05 * rng.standard_normal(len(time))
    return DecodedVideo(pictures, sound.astype(np.float32))


def write_clip(path: Path, decoded: DecodedVideo) -> None:
    """The video as a file (H.264 or MPEG-4, and AAC), every picture shown for its second.

    Raises:
        ImportError: PyAV is not installed.
    """
    if not HAS_AV:
        raise ImportError(WITHOUT_AV)
    import av

    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    with av.open(str(path), "w", format="mp4") as out:
        stream: Any = out.add_stream(codec, rate=CLIP_FPS)
        stream.height, stream.width = decoded.frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        audio: Any = out.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        for second, picture in enumerate(decoded.frames):
            for i in range(CLIP_FPS):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts = second * CLIP_FPS + i
                frame.time_base = Fraction(1, CLIP_FPS)
                out.mux(stream.encode(frame))
            first = second * SAMPLE_RATE
            samples = decoded.waveform[None, first : first + SAMPLE_RATE]
            heard = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(samples), format="fltp", layout="mono"
            )
            heard.sample_rate, heard.pts = SAMPLE_RATE, first
            heard.time_base = Fraction(1, SAMPLE_RATE)
            out.mux(audio.encode(heard))
        out.mux(stream.encode())
        out.mux(audio.encode())

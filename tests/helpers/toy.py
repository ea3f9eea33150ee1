# SPDX-License-Identifier: Apache-2.0
"""The whole model at the smallest width that still has every part, and inputs for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tdc import TDCConfig, TDCForConditionalGeneration, TDCProcessor
from tdc.encoder.segment import Segmentation
from tdc.processor.processor import ModelInputs
from tdc.testing import _bert_vocabulary, byte_tokenizer, character_bert_tokenizer

QUESTION = "What moves in the video?"
PROMPT = f"<video>\n{QUESTION}"

# Large initial weights: with 0.02 every prompt would give nearly the same logits.
TEXT = {
    "model_type": "qwen2",
    "vocab_size": 264,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": 257,
    "pad_token_id": 258,
}
LLAMA = {**TEXT, "model_type": "llama", "tie_word_embeddings": False}
TIED = {**TEXT, "tie_word_embeddings": True}
GPT2 = {
    "model_type": "gpt2",
    "vocab_size": 264,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 1024,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": 257,
    "pad_token_id": 258,
}
VIT = {"num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 14, "image_size": 56}
QFORMER = {
    "vocab_size": len(_bert_vocabulary()),
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
BEATS = {
    "embed_dim": 8,
    "encoder_layers": 1,
    "encoder_embed_dim": 16,
    "encoder_ffn_embed_dim": 32,
    "encoder_attention_heads": 2,
    "conv_pos": 8,
    "conv_pos_groups": 4,
}


def toy_config(**changes: Any) -> TDCConfig:
    """Square frames have 20 tokens (4 x 4 and newlines), 2:1 landscapes 10."""
    fields: dict[str, Any] = {
        "text_config": TEXT,
        "siglip_config": {**VIT, "hidden_size": 16, "intermediate_size": 32},
        "dinov2_config": {**VIT, "hidden_size": 24, "mlp_ratio": 2},
        "qformer_config": QFORMER,
        "audio_config": BEATS,
        "siglip_image_size": 56,
        "dinov2_image_size": 56,
        "tower_grid": 8,
        "connector_hidden_size": 16,
        "connector_depth": 2,
        "connector_heads": 4,
        "connector_grid": 4,
        "frame_grid": 4,
        "num_scenes": 4,
        "num_context_tokens": 3,
        "audio_tokens_per_frame": 6,
        "max_context_length": 700,
    }
    return TDCConfig(**{**fields, **changes})


def toy_model(config: TDCConfig | None = None, seed: int = 0) -> TDCForConditionalGeneration:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TDCForConditionalGeneration(config or toy_config()).eval()


def toy_processor(config: TDCConfig | None = None) -> TDCProcessor:
    return TDCProcessor(byte_tokenizer(), character_bert_tokenizer(), config or toy_config())


def toy_video(
    frames: int = 10, size: tuple[int, int] = (24, 24), seed: int = 0, scenes: int = 3
) -> np.ndarray:
    """uint8 ``[T, H, W, 3]``: ``scenes`` backgrounds, and a square that moves."""
    rng = np.random.default_rng(seed)
    width, height = size
    backgrounds = rng.integers(0, 256, (scenes, height, width, 3), dtype=np.uint8)
    video = backgrounds[np.arange(frames) * scenes // max(frames, 1)].copy()
    for number in range(frames):
        left = number % max(1, width - 4)
        video[number, :4, left : left + 4] = rng.integers(0, 256, 3)
    return video


def toy_sound(seconds: float = 10, seed: int = 0) -> np.ndarray:
    """fp32 ``[n]`` at 16 kHz."""
    rng = np.random.default_rng(seed)
    return (0.3 * rng.standard_normal(round(seconds * 16_000))).astype(np.float32)


def toy_inputs(
    processor: TDCProcessor,
    text: str = PROMPT,
    frames: int = 10,
    size: tuple[int, int] = (24, 24),
    seed: int = 0,
    sound: float = 4.0,
) -> ModelInputs:
    """Model inputs for one prompt about one video with ``sound`` seconds of sound."""
    audio = [toy_sound(sound, seed)] if sound else [False]
    return processor(text=text, videos=[toy_video(frames, size, seed)], audio=audio)


def cuts_at(boundaries: list[list[int]], cu_frames: list[int], size: int = 3) -> Segmentation:
    """Videos cut where the test wants it."""
    rows = [
        (cuts + [stop - start] * size)[:size]
        for cuts, start, stop in zip(boundaries, cu_frames[:-1], cu_frames[1:], strict=True)
    ]
    similarity = torch.ones(max(cu_frames[-1] - 1, 0))
    return Segmentation(similarity, torch.tensor(rows, dtype=torch.int32), tuple(cu_frames))

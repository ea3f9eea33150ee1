# SPDX-License-Identifier: Apache-2.0
"""Configuration and tokenizers of the tiny TDC, and a new model."""

from __future__ import annotations

import torch
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import BertTokenizer, PreTrainedTokenizerFast

from tdc.config import TDCConfig
from tdc.model import TDCForConditionalGeneration
from tdc.processor.processor import TDCProcessor

from .world import vocabulary

SIDE = 64  # pixels of a frame's side, for both towers
MARKS = ("<|end|>", "<|pad|>", "<|unknown|>", "<|question|>", "<|answer|>")
# Media first and one special token per turn: a prompt is little longer than its words.
TEMPLATE = """\
{%- for message in messages -%}
{{- '<|answer|> ' if message.role == 'assistant' -}}
{%- if message.content is string -%}
{{- '<|question|> ' if message.role == 'user' -}}{{ message.content }}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'video' -%}{{ '<video>' }}
{%- elif part.type == 'image' -%}{{ '<image>' }}
{%- elif part.type == 'text' -%}{{ '<|question|> ' + part.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- ' <|end|> ' if message.role == 'assistant' else ' ' -}}
{%- endfor -%}
{{- '<|answer|> ' if add_generation_prompt -}}
"""


def tiny_config() -> TDCConfig:
    """Configuration of 1.4 M parameters: 20 tokens for a static frame, 4 for a dynamic one."""
    words = len(_words()) + len(MARKS)
    return TDCConfig(
        text_config={
            "model_type": "qwen2",
            "vocab_size": words,
            "hidden_size": 96,
            "intermediate_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 2048,
            "bos_token_id": None,
            "eos_token_id": 0,
            "pad_token_id": 1,
            "tie_word_embeddings": True,
            # For everything but the towers. 0.02 suits widths of thousands; here the Q-Former's
            # view of a frame would drown in its queries and the compressor stay at chance.
            "initializer_range": 0.1,
        },
        siglip_config={
            "hidden_size": 64,
            "intermediate_size": 192,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": SIDE,
            "patch_size": 8,
        },
        dinov2_config={
            "hidden_size": 96,
            "mlp_ratio": 3,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": SIDE,
            "patch_size": 16,
        },
        qformer_config={
            "vocab_size": len(_bert_words()),
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 192,
            "max_position_embeddings": 128,
        },
        cross_attention_every=1,
        audio_config={
            "embed_dim": 64,
            "encoder_layers": 2,
            "encoder_embed_dim": 64,
            "encoder_ffn_embed_dim": 192,
            "encoder_attention_heads": 4,
            "conv_pos": 16,
            "conv_pos_groups": 4,
        },
        siglip_image_size=SIDE,
        dinov2_image_size=SIDE,
        tower_grid=8,
        connector_grid=4,
        frame_grid=4,
        connector_hidden_size=64,
        connector_depth=2,
        connector_heads=4,
        num_context_tokens=4,
        max_question_tokens=64,
        num_scenes=24,
        similarity_threshold=SIMILARITY_THRESHOLD,
        audio_tokens_per_frame=4,
        max_frames=128,
        max_context_length=2048,
    )


# Similarity within a scene lies above, at cuts below; measured on validation clips (docs/tiny.md).
SIMILARITY_THRESHOLD = 0.5


def new_model(seed: int) -> TDCForConditionalGeneration:
    """An untrained model, initialised from ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TDCForConditionalGeneration(tiny_config())


def new_processor(config: TDCConfig) -> TDCProcessor:
    return TDCProcessor(word_tokenizer(), bert_tokenizer(), config, TEMPLATE)


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token per word of the world, case-insensitive."""
    names = [*MARKS, *_words()]
    vocabulary = {name: number for number, name in enumerate(names)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|unknown|>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken(mark, special=True) for mark in MARKS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=MARKS[0],
        pad_token=MARKS[1],
        unk_token=MARKS[2],
        clean_up_tokenization_spaces=False,
    )


def bert_tokenizer() -> BertTokenizer:
    return BertTokenizer(vocab={word: number for number, word in enumerate(_bert_words())})


def _words() -> list[str]:
    return sorted({word.lower() for word in vocabulary()})


def _bert_words() -> list[str]:
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_words()]

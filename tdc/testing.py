# SPDX-License-Identifier: Apache-2.0
"""A small configuration with the paper's token counts, for tests and measurements.

Every part is the real one (27 x 27 patches, 144 tokens a frame, sound, Q-Former, language model);
only widths and depths are small. The tokenizers know every text and need no vocabulary.
"""

from __future__ import annotations

import string

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import BertTokenizer, PreTrainedTokenizerFast

from .config import TDCConfig


def small_config() -> TDCConfig:
    """0.7 M parameters; real token counts."""
    vit = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return TDCConfig(
        text_config={
            "model_type": "qwen2",
            "vocab_size": 264,
            "hidden_size": 96,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 8192,
            "bos_token_id": None,
            "eos_token_id": 257,
            "pad_token_id": 258,
        },
        siglip_config={**vit, "intermediate_size": 96, "image_size": 384, "patch_size": 14},
        dinov2_config={**vit, "mlp_ratio": 2, "image_size": 378, "patch_size": 14},
        qformer_config={
            "vocab_size": len(_bert_vocabulary()),
            "hidden_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "intermediate_size": 128,
        },
        audio_config={
            "embed_dim": 32,
            "encoder_layers": 2,
            "encoder_embed_dim": 64,
            "encoder_ffn_embed_dim": 128,
            "encoder_attention_heads": 4,
            "conv_pos": 16,
            "conv_pos_groups": 4,
        },
        connector_hidden_size=64,
        connector_depth=2,
        connector_heads=4,
        num_scenes=6,
    )


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte of UTF-8, and ChatML's marks: no vocabulary has to be learned."""
    alphabet = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    marks = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
    tokenizer.add_special_tokens([AddedToken(mark, special=True) for mark in marks])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )


def character_bert_tokenizer() -> BertTokenizer:
    """WordPiece over single characters."""
    return BertTokenizer(vocab={token: i for i, token in enumerate(_bert_vocabulary())})


def _bert_vocabulary() -> list[str]:
    letters = string.ascii_lowercase + string.digits
    return [
        *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
        *letters,
        *("##" + letter for letter in letters),
        *string.punctuation,
    ]

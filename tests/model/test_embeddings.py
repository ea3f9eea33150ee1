# SPDX-License-Identifier: Apache-2.0
"""New words: resizing, replacing and tying embeddings, as transformers users expect it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from toy import GPT2, TEXT, TIED, toy_config, toy_inputs, toy_model

from tdc.model import TDCForConditionalGeneration

each = pytest.mark.parametrize("text", [TEXT, TIED, GPT2], ids=["qwen2", "tied qwen2", "gpt2"])


def weights(model):
    return model.get_input_embeddings().weight, model.get_output_embeddings().weight


@each
def test_resizing(text, processor, tmp_path):
    model, inputs = toy_model(toy_config(text_config=text)), toy_inputs(processor)
    old = inputs["input_ids"].clamp(min=0)
    tied = model.config.tie_word_embeddings
    before = model(**inputs).logits
    made = model.resize_token_embeddings(300, mean_resizing=False)
    assert made is model.get_input_embeddings() and made.num_embeddings == 300
    words, head = weights(model)
    assert words.shape == head.shape == (300, 32) and (words is head) == tied
    assert model.config.text_config.vocab_size == model.config.get_text_config().vocab_size == 300
    assert model.language_model.config.vocab_size == model.language_model.vocab_size == 300
    output = model(**inputs, labels=old)
    assert output.logits.shape[-1] == 300 and output.loss.isfinite()
    torch.testing.assert_close(output.logits[..., :264], before)
    model.save_pretrained(tmp_path)
    again = TDCForConditionalGeneration.from_pretrained(tmp_path)
    assert again.config.text_config.vocab_size == 300
    words, head = weights(again)
    assert words.shape == (300, 32) and (words is head) == tied
    torch.testing.assert_close(again(**inputs).logits, output.logits, rtol=0, atol=0)
    assert model.resize_token_embeddings(pad_to_multiple_of=64).num_embeddings == 320
    assert model.config.text_config.vocab_size == 320


@each
def test_another_output_matrix(text, processor, tmp_path):
    model, inputs = toy_model(toy_config(text_config=text)), toy_inputs(processor)
    head = nn.Linear(32, 264, bias=False)
    model.set_output_embeddings(head)
    assert model.get_output_embeddings() is model.language_model.lm_head is head
    model.tie_weights()
    words, now = weights(model)
    assert (words is now) == model.config.tie_word_embeddings
    logits = model(**inputs).logits
    model.save_pretrained(tmp_path)
    again = TDCForConditionalGeneration.from_pretrained(tmp_path)
    torch.testing.assert_close(again(**inputs).logits, logits, rtol=0, atol=0)


@each
def test_another_input_matrix(text):
    model = toy_model(toy_config(text_config=text))
    words = nn.Embedding(264, 32)
    model.set_input_embeddings(words)
    assert model.get_input_embeddings() is words
    model.tie_weights()
    assert (
        model.get_output_embeddings().weight is words.weight
    ) == model.config.tie_word_embeddings

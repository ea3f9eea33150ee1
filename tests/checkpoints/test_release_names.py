# SPDX-License-Identifier: Apache-2.0
"""What a release must hold: a Q-Former of known heads, and a head of its own unless it is tied."""

from __future__ import annotations

import pytest
from releases import released_state, write_release

from tdc import InputError
from tdc.checkpoints.convert import convert_release
from tdc.checkpoints.release_names import _qformer_config


def shapes(width: int, layers: int = 3) -> dict[str, tuple[int, ...]]:
    names = {"embeddings.word_embeddings": (30522, width), "embeddings.position_embeddings": (512,)}
    for layer in range(layers):
        names[f"encoder.layer.{layer}.intermediate.dense"] = (4 * width, width)
    return {f"model.Qformer.bert.{name}.weight": shape for name, shape in names.items()}


@pytest.mark.parametrize(("width", "heads"), [(768, 12), (1024, 16)])  # BERT-base and BERT-large
def test_heads_without_bert_are_those_of_bert(width, heads):
    found = _qformer_config(shapes(width), None)
    assert found["num_attention_heads"] == heads
    assert (found["hidden_size"], found["intermediate_size"]) == (width, 4 * width)
    assert (found["num_hidden_layers"], found["vocab_size"]) == (3, 30522)


def test_another_width_needs_bert():
    with pytest.raises(InputError, match="a Q-Former of width 100 has no heads of 64; give"):
        _qformer_config(shapes(100), None)
    found = _qformer_config(shapes(100), {"num_attention_heads": 5})
    assert found["num_attention_heads"] == 5


def test_only_a_tied_head_may_be_absent(tmp_path):
    state = {k: v for k, v in released_state().items() if k != "lm_head.weight"}
    folder = write_release(tmp_path / "in", state, tie_word_embeddings=False)
    with pytest.raises(InputError, match=r"lacks 1 tensors: language_model\.lm_head\.weight"):
        convert_release(folder, tmp_path / "out")

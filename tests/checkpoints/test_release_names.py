# SPDX-License-Identifier: Apache-2.0
"""A Q-Former's sizes, read off the tensors of a release."""

from __future__ import annotations

import pytest

from tdc import InputError
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

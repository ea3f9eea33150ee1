# SPDX-License-Identifier: Apache-2.0
"""A model put together from a language model, BERT and towers."""

from __future__ import annotations

import pytest
import torch
from toy import QFORMER, toy_config
from train_samples import CALM, settings
from transformers import AutoModelForCausalLM, BertModel, Dinov2Model, SiglipVisionModel

from tdc import InputError
from tdc.testing import byte_tokenizer, character_bert_tokenizer
from tdc.train.stages import get_stage
from tdc.train.starting_model import starting_model

SMALL = {
    "siglip_image_size": 56,
    "dinov2_image_size": 56,
    "tower_grid": 8,
    "connector_hidden_size": 16,
    "connector_heads": 4,
}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Folders of the four parts, as their own classes save them."""
    folder = tmp_path_factory.mktemp("parts")
    config = toy_config(text_config=CALM)
    torch.manual_seed(1)
    models = {
        "language_model": AutoModelForCausalLM.from_config(config.text_config),
        "bert": BertModel(config.qformer_config),
        "siglip": SiglipVisionModel(config.siglip_config),
        "dinov2": Dinov2Model(config.dinov2_config),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
    byte_tokenizer().save_pretrained(folder / "language_model")
    character_bert_tokenizer().save_pretrained(folder / "bert")
    return {name: str(folder / name) for name in models}, models


def test_parts_become_a_model(parts, tmp_path):
    folders, models = parts
    chosen = settings(tmp_path, model_config=SMALL, **folders)
    model, processor, new = starting_model(chosen, get_stage(1))
    theirs = models["language_model"].state_dict()
    ours = model.language_model.state_dict()
    assert all(torch.equal(ours[name], x) for name, x in theirs.items())
    bert, layer = models["bert"].encoder.layer[1], model.compressor.qformer.layers[1]
    assert torch.equal(layer.attention.query.weight, bert.attention.self.query.weight)
    assert torch.equal(layer.ffn_text.up.weight, bert.intermediate.dense.weight)
    # As in the release the queries' own feed-forward does not start from BERT's.
    assert not torch.equal(layer.ffn_query.up.weight, bert.intermediate.dense.weight)
    pixels = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        tower = model.video_encoder.dinov2.eval().model(pixels).last_hidden_state
        torch.testing.assert_close(tower, models["dinov2"].eval()(pixels).last_hidden_state)
    assert new and all(n.startswith(("video_encoder.connector.", "compressor.")) for n in new)
    assert not any("ffn_text" in n or "word_embeddings" in n for n in new)
    assert model.config.frame_grid == processor.config.frame_grid == 8
    assert model.config.qformer_config.num_hidden_layers == QFORMER["num_hidden_layers"]


def test_parts_that_are_missing_or_do_not_fit(parts, tmp_path):
    folders, _ = parts
    for change, message in (
        ({"bert": None}, "names neither model nor bert"),
        ({"bert": str(tmp_path / "gone")}, "bert: no such folder"),
        ({"model": folders["bert"]}, "names model and language_model"),
        ({"bert": folders["siglip"]}, "bert: .* holds a model of type 'siglip_vision_model'"),
        ({"dinov2": folders["siglip"]}, "expected 'dinov2'"),
    ):
        fields = {"model_config": SMALL, **folders, **change}
        with pytest.raises(InputError, match=message):
            starting_model(settings(tmp_path, **fields), get_stage(1))

# SPDX-License-Identifier: Apache-2.0
"""TDCConfig: the paper's numbers, sub-configurations, checks, files."""

from __future__ import annotations

import json

import pytest
from toy import GPT2, LLAMA, TIED, toy_config
from transformers import (
    AutoConfig,
    BertConfig,
    Dinov2Config,
    GPT2Config,
    LlamaConfig,
    Qwen2Config,
    SiglipVisionConfig,
)

from tdc import TDCConfig
from tdc.config import _CHOICES, RELEASE_BEHAVIOUR


def test_defaults_are_the_papers():
    config = TDCConfig()
    assert (config.num_scenes, config.num_boundaries) == (24, 23)
    assert (config.num_context_tokens, config.max_frames, config.fps) == (16, 224, 1.0)
    assert config.frame_grid**2 == 144 and config.tower_grid**2 == 576
    assert config.scene_window is None and config.static_frames
    assert config.question_in_compressor and config.query_type == "pooled"


def test_release_behaviour_names_fields_and_changes_each():
    ours, theirs = TDCConfig(), TDCConfig(**RELEASE_BEHAVIOUR)
    for name, value in RELEASE_BEHAVIOUR.items():
        assert getattr(theirs, name) == value
        assert getattr(ours, name) != value, name


def test_sub_configurations_from_dicts_and_objects():
    config = toy_config()
    assert type(config.text_config) is Qwen2Config
    assert type(config.siglip_config) is SiglipVisionConfig
    assert type(config.dinov2_config) is Dinov2Config
    assert type(config.qformer_config) is BertConfig
    assert config.get_text_config() is config.text_config
    again = toy_config(text_config=config.text_config, qformer_config=config.qformer_config)
    assert again.to_dict() == config.to_dict()
    # Widths follow the towers; without towers they say what features will come.
    assert (config.siglip_hidden_size, config.dinov2_hidden_size) == (16, 24)
    bare = toy_config(siglip_config=None, dinov2_config=None, siglip_hidden_size=40)
    assert bare.siglip_config is None and bare.siglip_hidden_size == 40


@pytest.mark.parametrize(
    ("text", "cls", "tied"),
    [(LLAMA, LlamaConfig, False), (GPT2, GPT2Config, True), (TIED, Qwen2Config, True)],
)
def test_any_decoder(text, cls, tied):
    config = toy_config(text_config=text)
    assert type(config.text_config) is cls
    assert config.hidden_size == 32
    assert config.tie_word_embeddings is tied


@pytest.mark.parametrize("through_auto", [False, True])
def test_round_trip_through_a_file(tmp_path, through_auto):
    changes = {"scene_window": 8, "frame_positions": "release", "similarity_threshold": 0.5}
    config = toy_config(text_config=LLAMA, **RELEASE_BEHAVIOUR | changes)
    config.save_pretrained(tmp_path)
    cls = AutoConfig if through_auto else TDCConfig
    loaded = cls.from_pretrained(tmp_path)
    assert type(loaded) is TDCConfig
    assert loaded.to_dict() | {"_name_or_path": ""} == config.to_dict() | {"_name_or_path": ""}
    assert type(loaded.text_config) is LlamaConfig
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["model_type"] == "tdc" and stored["scene_window"] == 8
    assert stored["text_config"]["model_type"] == "llama"


@pytest.mark.parametrize("name", sorted(_CHOICES))
def test_choices_are_checked(name):
    for value in _CHOICES[name]:
        assert getattr(toy_config(**{name: value}), name) == value
    with pytest.raises(ValueError, match=f"^{name} is 'nonsense'; expected one of ") as error:
        toy_config(**{name: "nonsense"})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_scenes": 0}, "num_scenes is 0; expected at least 1"),
        ({"num_context_tokens": 0}, "num_context_tokens is 0"),
        ({"max_frames": 0}, "max_frames is 0"),
        ({"frame_grid": 0}, "frame_grid is 0"),
        ({"scene_window": 0}, "scene_window is 0; expected None or at least 1"),
        ({"connector_grid": 3}, "tower_grid is 8; expected a multiple of connector_grid"),
    ],
)
def test_impossible_numbers_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        toy_config(**changes)

# SPDX-License-Identifier: Apache-2.0
"""Saving, loading, Auto classes, device maps."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from toy import LLAMA, TEXT, TIED, toy_config, toy_model, toy_sound, toy_video
from transformers import (
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
)

from tdc import TDCForConditionalGeneration, TDCProcessor


def inputs_for(processor):
    return processor(
        text="<video>\nwhat?", videos=[toy_video(9)], audio=[toy_sound(3.0)], max_frames=9
    )


@pytest.mark.parametrize("text", [TEXT, LLAMA, TIED], ids=["qwen2", "llama", "tied"])
@torch.no_grad()
def test_save_and_load_is_bit_equal(tmp_path, processor, text):
    model = toy_model(toy_config(text_config=text, query_type="learned"))
    model.save_pretrained(tmp_path)
    loaded, info = TDCForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    state = loaded.state_dict()
    assert state.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(state[name], tensor), name
    inputs = inputs_for(processor)
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        stored = set(file.keys())
    assert ("language_model.lm_head.weight" in stored) == (text is not TIED)
    assert loaded.generation_config.eos_token_id == model.generation_config.eos_token_id


def test_missing_parameters_are_initialised(tmp_path, caplog):
    """A checkpoint of an earlier stage lacks what a later one adds: it gets fresh weights, said."""
    model = toy_model(toy_config(query_type="learned", connector_grid=4, frame_grid=4))
    names = [
        "compressor.separator",
        "compressor.query_tokens",
        "video_encoder.connector.query",
        "video_encoder.connector.image_newline",
        "video_encoder.connector.samplers.0.0.towers.1.position",
        "video_encoder.beats.encoder.layers.0.self_attn.grep_a",
        "video_encoder.connector.projector.0.weight",
    ]
    state = {k: v for k, v in model.state_dict().items() if k not in names}
    assert len(state) == len(model.state_dict()) - len(names)
    model.save_pretrained(tmp_path, state_dict=state)
    loaded, info = TDCForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert sorted(info["missing_keys"]) == sorted(names)
    for name in names:
        value = loaded.state_dict()[name]
        assert value.isfinite().all() and value.any(), name


@pytest.mark.parametrize("auto", [AutoModelForImageTextToText, AutoModelForMultimodalLM])
@torch.no_grad()
def test_auto_classes(tmp_path, model, processor, auto):
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, handler = auto.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is TDCForConditionalGeneration and type(handler) is TDCProcessor
    assert torch.equal(loaded(**inputs_for(handler)).logits, model(**inputs_for(processor)).logits)


@pytest.mark.parametrize("kind", ["cpu", "disk"])
@torch.no_grad()
def test_device_maps(tmp_path, model, processor, kind):
    """Everything in memory, and with towers and layers on disk, read when they run."""
    pytest.importorskip("accelerate")
    model.save_pretrained(tmp_path / "model")
    places = {"": "cpu"}
    if kind == "disk":
        parts = ["connector", "beats"]
        places = dict.fromkeys([*(f"video_encoder.{part}" for part in parts), "compressor"], "cpu")
        parts = ["embed_tokens", "layers.0", "norm", "rotary_emb"]
        places |= dict.fromkeys([f"language_model.model.{part}" for part in parts], "cpu")
        parts = ["video_encoder.siglip", "video_encoder.dinov2", "language_model.model.layers.1"]
        places |= dict.fromkeys(parts, "disk") | {"language_model.lm_head": "cpu"}
    loaded = TDCForConditionalGeneration.from_pretrained(
        tmp_path / "model", device_map=places, offload_folder=tmp_path / "offload"
    )
    on_disk = {n for n, p in loaded.named_parameters() if p.device.type == "meta"}
    assert bool(on_disk) == (kind == "disk")
    inputs = inputs_for(processor)
    # Several places hang a hook on every layer: layers are called, not read, in another order.
    bound = 2e-5 if kind == "disk" else 0
    torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits, rtol=0, atol=bound)
    options = {"do_sample": False, "max_new_tokens": 4, "eos_token_id": None}
    assert torch.equal(loaded.generate(**inputs, **options), model.generate(**inputs, **options))


def test_parts_stay_whole_in_an_automatic_map(model):
    accelerate = pytest.importorskip("accelerate")
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    places = accelerate.infer_auto_device_map(
        model,
        max_memory={"cpu": size // 2, "disk": 10 * size},
        no_split_module_classes=list(model._no_split_modules),  # accelerate before 1.15
    )
    whole = ("compressor", "video_encoder.connector", "video_encoder.beats")
    for module in places:
        assert not any(module.startswith(part + ".") for part in whole), module
        assert not module.startswith("language_model.model.layers.0."), module

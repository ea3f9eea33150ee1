# SPDX-License-Identifier: Apache-2.0
"""``--model DIR`` with a damaged checkpoint or no checkpoint: one line, exit code 2, no file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from clips import truncate
from model_folders import configure
from safetensors.torch import load_file, save_file


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """A folder that must stay empty."""
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def each(folder: Path, clip: Path, outputs: Path) -> list[list[object]]:
    """One command that loads the whole model, one that loads a part of it."""
    return [
        ["encode", clip, "-o", outputs / "c.safetensors", "--model", folder],
        ["segment", clip, "--plot", outputs / "p.png", "--model", folder],
    ]


@pytest.mark.parametrize(
    ("tensor", "in_segment"),
    [("compressor.output_proj.weight", False), ("video_encoder.dinov2.", True)],
)
def test_checkpoint_with_a_missing_tensor(tdc, clip, outputs, own_model, tensor, in_segment):
    file = own_model / "model.safetensors"
    state = load_file(file)
    name = next(key for key in state if key.startswith(tensor) and key.endswith("weight"))
    del state[name]
    save_file(state, file, {"format": "pt"})
    whole, part = each(own_model, clip, outputs)
    line = tdc(*whole).refused()
    assert f"missing 1: {name}" in line and str(own_model) in line
    if in_segment:
        assert f"missing 1: {name}" in tdc(*part).refused()
    assert not list(outputs.iterdir())


@pytest.mark.parametrize("tensor", ["compressor.output_proj.weight", "video_encoder.dinov2."])
def test_checkpoint_with_a_wrong_shape(tdc, clip, outputs, own_model, tensor):
    file = own_model / "model.safetensors"
    state = load_file(file)
    name = next(key for key in state if key.startswith(tensor) and state[key].dim() == 2)
    rows, columns = state[name].shape
    state[name] = state[name][:-1].contiguous()
    save_file(state, file, {"format": "pt"})
    for arguments in each(own_model, clip, outputs)[: 2 if "dinov2" in name else 1]:
        line = tdc(*arguments).refused()
        assert "wrong shape 1: " in line
        assert f"{name} is [{rows - 1}, {columns}], expected [{rows}, {columns}]" in line
    assert not list(outputs.iterdir())


def test_checkpoint_with_an_unknown_tensor(tdc, clip, outputs, own_model):
    file = own_model / "model.safetensors"
    state = load_file(file)
    state["compressor.surplus"] = state["compressor.separator"].clone()
    save_file(state, file, {"format": "pt"})
    line = tdc(*each(own_model, clip, outputs)[0]).refused()
    assert "unexpected 1: compressor.surplus" in line


def test_checkpoint_with_many_faults_names_some_and_counts_all(tdc, clip, outputs, own_model):
    file = own_model / "model.safetensors"
    state = load_file(file)
    lost = [key for key in state if "connector" in key]
    save_file({k: v for k, v in state.items() if k not in lost}, file, {"format": "pt"})
    line = tdc(*each(own_model, clip, outputs)[0]).refused()
    assert f"missing {len(lost)}: " in line and f"and {len(lost) - 8} more" in line


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("folder", "no such folder"),
        ("config", "it holds no config.json"),
        ("json", "is not JSON"),
        ("other", "holds a model of type 'bert'; expected 'tdc'"),
        ("release", "convert it first: tdc convert"),
        ("field", "query_type is 'guessed'; expected one of"),
        ("weights", "holds no weights"),
        ("half", "model.safetensors"),
    ],
)
def test_folder_that_is_no_model(tdc, clip, outputs, own_model, damage, says):
    config, weights = own_model / "config.json", own_model / "model.safetensors"
    if damage == "folder":
        own_model = own_model / "none"
    elif damage == "config":
        config.unlink()
    elif damage == "json":
        config.write_text("{")
    elif damage == "weights":
        weights.unlink()
    elif damage == "half":
        truncate(weights, weights, 0.5)
    else:
        value = {"other": "bert", "release": "cambrian_qwen"}.get(damage)
        configure(own_model, **({"model_type": value} if value else {"query_type": "guessed"}))
    for arguments in each(own_model, clip, outputs):
        assert says in tdc(*arguments).refused()
    assert not list(outputs.iterdir())


def test_model_without_a_processor(tdc, clip, outputs, own_model):
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json"):
        (own_model / name).unlink()
    line = tdc(*each(own_model, clip, outputs)[0]).refused()
    assert "cannot load the model in" in line


def test_model_saved_without_towers(tdc, clip, outputs, own_model):
    configure(own_model, siglip_config=None, dinov2_config=None)
    data = json.loads((own_model / "config.json").read_text())
    assert data["dinov2_config"] is None
    file = own_model / "model.safetensors"
    state = load_file(file)
    towers = ("video_encoder.siglip.", "video_encoder.dinov2.")
    configure(own_model, siglip_hidden_size=48, dinov2_hidden_size=48)
    save_file({k: v for k, v in state.items() if not k.startswith(towers)}, file, {"format": "pt"})
    whole, part = each(own_model, clip, outputs)
    assert "without vision towers" in tdc(*whole).refused()
    assert "without its DINOv2 tower" in tdc(*part).refused()

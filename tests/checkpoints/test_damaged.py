# SPDX-License-Identifier: Apache-2.0
"""Damaged checkpoints: one line or a whole result, and never their code."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import damage
import pytest
import torch
from model_folders import write_model
from releases import released_state, write_beats, write_release, write_towers
from safetensors.torch import load_file, save_file

from tdc.checkpoints.convert import convert_release
from tdc.checkpoints.load import load_model
from tdc.encoder.beats import BEATs
from tdc.errors import InputError

DEAR = ("another_value", "other_tensors", "other_files", "another_text")  # often a whole result


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, Path]:
    """A release with all that is converted with it, and a model."""
    folder = tmp_path_factory.mktemp("sources")
    release = write_release(folder / "release", released_state(), audio_input=True)
    write_towers(release)
    write_beats(release / "beats.pt")
    return {"convert": release, "load": write_model(folder / "model")}


@pytest.mark.parametrize("number", range(60))
def test_damaged_models(number, sources, tmp_path):
    folder, name = damage.damaged(sources["load"], tmp_path, number)
    if not any(dear in name for dear in DEAR):
        assert damage.outcome("load", folder)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 600, 50))
@pytest.mark.parametrize("what", ["load", "convert"])
def test_many(what, first, sources, tmp_path):
    """In a process of its own, with bounds on memory and time."""
    source = shutil.copytree(sources[what], tmp_path / "source")
    command = [sys.executable, damage.__file__, what, str(source), str(first), "50"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr[-2000:]
    # Libraries print there as well.
    assert not [line for line in done.stdout.splitlines() if line.startswith('{"number"')]


# ---------------------------------------------------------------- what was found


@pytest.fixture
def model(sources, tmp_path) -> Path:
    return shutil.copytree(sources["load"], tmp_path / "model")


@pytest.fixture
def release(sources, tmp_path) -> Path:
    return shutil.copytree(sources["convert"], tmp_path / "release")


def refused(function, *args, match: str, **kwargs) -> None:
    with pytest.raises(InputError, match=match) as caught:
        function(*args, **kwargs)
    assert "\n" not in str(caught.value)


def change(folder: Path, **fields) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_an_index_that_points_outside(model, tmp_path):
    """transformers opens what an index names, wherever it is."""
    (model / "model.safetensors").rename(tmp_path / "other.safetensors")
    save_file({"x": torch.zeros(1)}, model / "model-00001-of-00001.safetensors")
    for file in ("../other.safetensors", str(tmp_path / "other.safetensors")):
        table = dict.fromkeys(load_file(tmp_path / "other.safetensors"), file)
        index = model / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": table, "metadata": {}}))
        refused(load_model, model, "cpu", match=r"index\.json names tensors that are not there")


@pytest.mark.parametrize("key", ["connector_depth", "text_config"])
def test_more_layers_than_tensors(key, model):
    """Building them would never end."""
    text = json.loads((model / "config.json").read_text())["text_config"]
    change(model, **{key: {**text, "num_hidden_layers": 10**9} if key == "text_config" else 10**9})
    refused(load_model, model, "cpu", match=r"config\.json is 1000000000; the weights are")


def test_a_model_larger_than_its_weights(model):
    text = json.loads((model / "config.json").read_text())["text_config"]
    change(model, text_config=text | {"vocab_size": 10**9})
    refused(load_model, model, "cpu", match="describes a model of .* values, its weights hold")


def test_weights_that_are_not_finite(model, release, tmp_path):
    for folder, name in ((model, "compressor.separator"), (release, "model.frame_seg")):
        state = load_file(folder / "model.safetensors")
        state[name][0] = float("nan")
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    refused(load_model, model, "cpu", match=r"not finite in 1 tensors: compressor\.separator")
    match = r"model\.frame_seg in .* is not finite"
    refused(convert_release, release, tmp_path / "out", audio=False, match=match)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("fields", [{"connector_depth": "2"}, {"query_num_list": []}])
def test_values_of_another_kind(fields, release, tmp_path):
    change(release, **fields)
    refused(convert_release, release, tmp_path / "out", audio=False, match=r"config\.json")


def test_a_tensor_in_two_files(release, tmp_path):
    shutil.copy(release / "model.safetensors", release / "other.safetensors")
    match = "is in .*model.safetensors and in .*other.safetensors"
    refused(convert_release, release, tmp_path / "out", match=match)


def test_a_tower_that_lacks_a_tensor(release, tmp_path):
    """transformers would make it up."""
    file = release / "dinov2" / "model.safetensors"
    state = load_file(file)
    del state["encoder.layer.0.mlp.fc1.weight"]
    save_file(state, file, metadata={"format": "pt"})
    parts = {"audio": False, "siglip": release / "siglip", "dinov2": release / "dinov2"}
    refused(convert_release, release, tmp_path / "out", match="dinov2 lacks .*fc1", **parts)


def test_pickles_with_code_do_not_run(release, tmp_path):
    (release / "model.safetensors").unlink()
    torch.save({"x": damage.Code(tmp_path / "ran")}, release / "pytorch_model.bin")
    torch.save({"cfg": {}, "model": damage.Code(tmp_path / "ran")}, release / "beats.pt")
    match = "other things than tensors"
    refused(convert_release, release, tmp_path / "out", audio=False, match=match)
    refused(BEATs.from_checkpoint, release / "beats.pt", match="not a PyTorch checkpoint")
    assert not (tmp_path / "ran").exists()


def test_compressed_files_are_not_unpacked(release, tmp_path):
    (release / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "beats.pt"):
        torch.save({"x": torch.zeros(1)}, release / name)
        damage.deflated(release / name)
    refused(convert_release, release, tmp_path / "out", match="is compressed")
    refused(BEATs.from_checkpoint, release / "beats.pt", match="not a PyTorch checkpoint")


@pytest.mark.parametrize("name", ["tokenizer.json", "bert-base-uncased/vocab.txt"])
def test_pipes_and_devices_are_not_read(name, release, tmp_path):
    """They have no end."""
    (release / name).unlink(missing_ok=True)
    os.mkfifo(release / name)
    match = f"{name} is no regular file"
    refused(convert_release, release, tmp_path / "out", audio=False, match=match)
    (release / name).unlink()
    (release / name).symlink_to("/dev/zero")
    refused(convert_release, release, tmp_path / "out", audio=False, match=match)

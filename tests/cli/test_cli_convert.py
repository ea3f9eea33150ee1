# SPDX-License-Identifier: Apache-2.0
"""``tdc convert`` on the recordings' checkpoint in the authors' layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tdc.testing import byte_tokenizer

DATA = Path(__file__).parents[1] / "parity" / "data"


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release: the authors' configuration and tensors, a tokenizer, BERT beside them."""
    folder = tmp_path_factory.mktemp("release")
    with np.load(DATA / "state_qwen.npz") as arrays:
        state = {name: torch.from_numpy(arrays[name]).float() for name in arrays.files}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    shutil.copy(DATA / "config_qwen.json", folder / "config.json")
    byte_tokenizer().save_pretrained(folder)
    (folder / "bert-base-uncased").mkdir()
    shutil.copy(DATA / "bert_config.json", folder / "bert-base-uncased" / "config.json")
    shutil.copy(DATA / "bert_vocab.txt", folder / "bert-base-uncased" / "vocab.txt")
    return folder


@pytest.fixture
def release(released: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(released, tmp_path / "release"))


def test_convert_accounts_for_every_tensor(tdc, released, tmp_path):
    out = tmp_path / "converted"
    done = tdc("convert", released, out, "--no-audio", "--list")
    assert done.code == 0
    assert done.err.startswith("note: converted without --siglip and --dinov2")
    names = list(load_file(released / "model.safetensors"))
    fate = {
        line.split()[0]: line
        for line in done.out.splitlines()
        if line.startswith(("model.", "lm_"))
    }
    assert sorted(fate) == sorted(names)
    assert fate["model.frame_seg"].split() == ["model.frame_seg", "compressor.separator"]
    assert "ignored: the model is converted without audio" in fate["model.audio_proj.weight"]
    ignored = sum("ignored: " in line for line in fate.values())
    summary = done.out[done.out.index(f"{out}: ") :].splitlines()
    assert summary[0] == f"{out}: {len(names) - ignored} tensors taken from {released}"
    assert sum(int(line.split()[0]) for line in summary[1:]) == ignored
    assert json.loads((out / "config.json").read_text())["num_scenes"] == 25


def test_convert_summary_is_short_without_list(tdc, released, tmp_path):
    done = tdc("convert", released, tmp_path / "out", "--no-audio")
    assert len(done.out.splitlines()) < 8 and "model.frame_seg" not in done.out


def test_converted_model_loads_and_says_that_it_has_no_towers(tdc, released, clip, tmp_path):
    out = tmp_path / "out"
    assert tdc("convert", released, out, "--no-audio").code == 0
    assert "without vision towers" in tdc("chat", clip, "Who?", "--model", out).refused()
    assert "convert it first: tdc convert" in tdc("chat", clip, "?", "--model", released).refused()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("unknown", "1 unknown tensors: model.surprise"),
        ("missing", "lacks 1 tensors: compressor.separator"),
        ("shape", "model.frame_seg is [1, 63], expected [64]"),
        ("audio", "--beats"),
        ("bert", "--bert"),
    ],
)
def test_convert_refuses_with_the_list_and_writes_nothing(tdc, release, tmp_path, damage, says):
    file = release / "model.safetensors"
    state = load_file(file)
    if damage == "unknown":
        state["model.surprise"] = torch.zeros(1)
    elif damage == "missing":
        del state["model.frame_seg"]
    elif damage == "shape":
        state["model.frame_seg"] = torch.zeros(1, 63)
    elif damage == "bert":
        shutil.rmtree(release / "bert-base-uncased")
    save_file(state, file, {"format": "pt"})
    out = tmp_path / "out"
    line = tdc("convert", release, out, *([] if damage == "audio" else ["--no-audio"])).refused()
    assert says in line
    assert sorted(p.name for p in tmp_path.iterdir()) == ["release"]

# SPDX-License-Identifier: Apache-2.0
"""Folders as the authors publish them, at toy size: weights of ``tests/parity/data``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import Dinov2Config, Dinov2Model, SiglipVisionConfig, SiglipVisionModel

from tdc.testing import byte_tokenizer

DATA = Path(__file__).parents[1] / "parity" / "data"


def released_state() -> dict[str, torch.Tensor]:
    with np.load(DATA / "state_qwen.npz") as archive:
        return {name: torch.from_numpy(archive[name]) for name in archive.files}


def write_release(
    folder: Path,
    state: dict[str, torch.Tensor],
    *,
    llama: bool = False,
    bins: int = 0,
    **config: Any,
) -> Path:
    """Configuration, weights (safetensors, or ``bins`` PyTorch shards), tokenizer, BERT."""
    folder.mkdir()
    name = "config_llama.json" if llama else "config_qwen.json"
    base = json.loads((DATA / name).read_text())
    (folder / "config.json").write_text(json.dumps({**base, "audio_input": False, **config}))
    if bins:
        names = sorted(state)
        for i in range(bins):
            shard = {n: state[n] for n in names[i::bins]}
            torch.save(shard, folder / f"pytorch_model-{i + 1:05d}-of-{bins:05d}.bin")
        torch.save({"lr": 1.0}, folder / "training_args.bin")  # what training leaves behind
    else:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    byte_tokenizer().save_pretrained(folder)
    write_bert(folder / "bert-base-uncased")
    return folder


def write_bert(folder: Path) -> Path:
    folder.mkdir()
    shutil.copyfile(DATA / "bert_config.json", folder / "config.json")
    shutil.copyfile(DATA / "bert_vocab.txt", folder / "vocab.txt")
    return folder


def write_towers(folder: Path) -> dict[str, Path]:
    """A SigLIP and a DINOv2 of the widths that the released state expects."""
    vit = {"num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 14}
    siglip = SiglipVisionConfig(hidden_size=40, intermediate_size=40, image_size=384, **vit)
    dinov2 = Dinov2Config(hidden_size=24, mlp_ratio=2, image_size=518, **vit)
    paths = {"siglip": folder / "siglip", "dinov2": folder / "dinov2"}
    SiglipVisionModel(siglip).save_pretrained(paths["siglip"])
    Dinov2Model(dinov2).save_pretrained(paths["dinov2"])
    return paths


def write_beats(file: Path) -> Path:
    """BEATs in Microsoft's layout, from the recorded encoder."""
    with np.load(DATA / "beats768_state.npz") as archive:
        state = {name: torch.from_numpy(archive[name]) for name in archive.files}
    config = json.loads((DATA / "beats768_config.json").read_text())
    torch.save({"cfg": config, "model": state}, file)
    return file

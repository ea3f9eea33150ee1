# SPDX-License-Identifier: Apache-2.0
"""Tiny model folders, as ``save_pretrained`` writes them."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from tdc.config import TDCConfig
from tdc.model import TDCForConditionalGeneration
from tdc.processor.processor import TDCProcessor
from tdc.testing import byte_tokenizer, character_bert_tokenizer, small_config


def write_model(folder: Path) -> Path:
    """The embedded model with pictures of 56 pixels and 6 tokens a frame: half a second a run."""
    fields = small_config().to_dict()
    for tower in ("siglip", "dinov2"):
        fields[f"{tower}_config"]["image_size"] = fields[f"{tower}_image_size"] = 56
    fields |= {"tower_grid": 4, "connector_grid": 2, "frame_grid": 2, "num_context_tokens": 4}
    del fields["model_type"]
    config = TDCConfig(**fields)
    torch.manual_seed(0)
    TDCForConditionalGeneration(config).save_pretrained(folder)
    TDCProcessor(byte_tokenizer(), character_bert_tokenizer(), config).save_pretrained(folder)
    return folder


def configure(folder: Path, **fields: object) -> Path:
    """Change fields of a saved configuration, in the model's and the processor's copy."""
    for name in ("config.json", "processor_config.json"):
        data = json.loads((folder / name).read_text())
        (data if name == "config.json" else data["config"]).update(fields)
        (folder / name).write_text(json.dumps(data))
    return folder

# SPDX-License-Identifier: Apache-2.0
"""Tiny models, media and records for the tests of training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clips import tone, write_clip
from PIL import Image
from toy import TEXT, toy_config, toy_model, toy_processor

from tdc.config import TDCConfig
from tdc.encoder.tower_features import TowerFeatures
from tdc.model import TDCForConditionalGeneration
from tdc.train.config import TrainConfig

# Weights of the usual size: training with tiny.py's large ones is chaotic.
CALM = {**TEXT, "initializer_range": 0.05}


def calm_config(**changes: Any) -> TDCConfig:
    return toy_config(**{"text_config": CALM, **changes})


def calm_model(**changes: Any) -> TDCForConditionalGeneration:
    return toy_model(calm_config(**changes)).train()


def write_model(folder: Path, **changes: Any) -> Path:
    config = calm_config(**changes)
    toy_model(config).save_pretrained(folder)
    toy_processor(config).save_pretrained(folder)
    return folder


def write_media(folder: Path) -> Path:
    """``a.png``, ``b.png``, ``mute.mp4`` (9 s), ``loud.mp4`` (8 s), ``tone.mp4`` (sound only),
    ``images.json``, ``videos.json``, ``sounds.json``."""
    rng = np.random.default_rng(0)
    for name, size in (("a", (40, 40)), ("b", (40, 20))):
        pixels = rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    write_clip(folder / "mute.mp4", frames=18, fps=2, size=(64, 64))
    write_clip(folder / "loud.mp4", frames=16, fps=2, size=(64, 32), audio=tone(8))
    write_clip(folder / "tone.mp4", video=False, audio=tone(6, hertz=880))
    write_list(
        folder / "images.json",
        [
            record("What is it?", "A dog.", image="a.png"),
            record("And this?", "A cat on a mat.", image="b.png"),
            record("Say yes.", "Yes.", mark=""),
            record("Colour?", "Red", image="a.png"),
        ],
    )
    videos = [
        record("What moves?", "Stripes.", video="mute.mp4"),
        record("How many?", "Ten.", video="loud.mp4", mark="<image>"),
    ]
    write_list(folder / "videos.json", videos + [record("Where?", "Left.", image="b.png")] * 2)
    write_list(
        folder / "sounds.json",
        [
            record("What sounds?", "A tone.", video="loud.mp4"),
            record("And now?", "Higher.", video="mute.mp4", audio="tone.mp4"),
            *videos,
        ],
    )
    return folder


def record(question: str, answer: str, mark: str | None = None, **media: str) -> dict[str, Any]:
    mark = "<video>" if mark is None and "video" in media else "<image>" if mark is None else mark
    turns = [
        {"from": "human", "value": f"{mark}\n{question}" if mark else question},
        {"from": "gpt", "value": answer},
    ]
    return {"id": question, **media, "conversations": turns}


def write_list(path: Path, records: list[Any]) -> Path:
    path.write_text(json.dumps(records))
    return path


def settings(output: Path, **changes: Any) -> TrainConfig:
    """Six quick steps in fp32 on the CPU."""
    fields: dict[str, Any] = {
        "output_dir": str(output),
        "device": "cpu",
        "bf16": False,
        "max_steps": 6,
        "batch_size": 2,
        "learning_rate": 1e-3,
        "workers": 0,
        "logging_steps": 1,
        "save_steps": 1000,
        "gradient_checkpointing": False,
        "lora_rank": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.0,
        "tensorboard": False,
    }
    return TrainConfig(**{**fields, **changes})


def examples(count: int = 8, frames: int = 8, sound: bool = True, seed: int = 0) -> list[dict]:
    """Questions about clips that exist as tower features only, of the tiny model's widths."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for number in range(count):
        scene = torch.randn(2, 64, 40, generator=generator).repeat_interleave(frames // 2, 0)
        tokens = scene + 0.3 * torch.randn(len(scene), 64, 40, generator=generator)
        audio = torch.randn(len(scene), 6, 16, generator=generator) if sound else None
        features = TowerFeatures(tokens[..., :16], tokens[..., 16:], (32, 32), audio=audio)
        answer = ("red", "green", "blue")[number % 3]
        made.append({"video": features, "question": f"Colour {number}?", "answer": answer})
    return made


@pytest.fixture(scope="session")
def media_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures, two clips (one with sound) and a list for each stage. Never change it."""
    return write_media(tmp_path_factory.mktemp("media"))


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny TDC folder. Never change it."""
    return write_model(tmp_path_factory.mktemp("model") / "tdc")

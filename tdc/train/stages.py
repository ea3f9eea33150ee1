# SPDX-License-Identifier: Apache-2.0
"""The three stages (paper, section 4; the authors' scripts): what each trains, and on what.

1. pictures and text: connector and language model, 576 tokens a picture;
2. videos: connector, compressor and language model, 144 tokens a frame;
3. videos with sound: compressor with the audio projection, and LoRA on the language model.

SigLIP, DINOv2 and BEATs never train.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..config import TDCConfig
from ..errors import InputError
from .config import TrainConfig

ENCODERS = ("video_encoder.siglip.", "video_encoder.dinov2.", "video_encoder.beats.")
# Rows of the table: (what it is called, prefix of its parameters). The first that fits counts.
_ROWS = (
    ("SigLIP", ENCODERS[0]),
    ("DINOv2", ENCODERS[1]),
    ("BEATs", ENCODERS[2]),
    ("connector", "video_encoder.connector."),
    ("Q-Former", "compressor.qformer."),
    ("audio projection", "compressor.audio_proj."),
    ("compressor's projections, separator", "compressor."),
    ("language model", "language_model."),
)
_AUDIO = "compressor.audio_proj."


@dataclass(frozen=True)
class Stage:
    """One stage: what it trains (see ``TrainConfig.parts``) and the media it takes."""

    number: int
    title: str
    parts: tuple[str, ...]
    kinds: tuple[str | None, ...]
    sound: bool
    full_grid: bool  # every tower token becomes one of the frame's: 576; else a quarter of them


_STAGES = (
    Stage(
        1,
        "vision-language alignment on images",
        parts=("connector", "language_model"),
        kinds=("image", None),
        sound=False,
        full_grid=True,
    ),
    Stage(
        2,
        "video instruction tuning",
        parts=("connector", "compressor", "language_model"),
        kinds=("image", "video", None),
        sound=False,
        full_grid=False,
    ),
    Stage(
        3,
        "audio-visual tuning",
        parts=("compressor", "lora"),
        kinds=("image", "video", None),
        sound=True,
        full_grid=False,
    ),
)


def get_stage(number: int) -> Stage:
    """Stage 1, 2 or 3.

    Raises:
        InputError: another number.
    """
    if number not in (1, 2, 3):
        raise InputError(f"stage is {number!r}; expected 1, 2 or 3")
    return _STAGES[number - 1]


def stage_grids(stage: Stage, tower_grid: int) -> dict[str, int]:
    """``connector_grid`` and ``frame_grid``: 24 (576 tokens) in stage 1, then 12 (144)."""
    side = tower_grid if stage.full_grid else tower_grid // 2
    return {"connector_grid": side, "frame_grid": side}


def hears(stage: Stage, settings: TrainConfig, config: TDCConfig) -> bool:
    """True where the videos' sound is used."""
    wanted = stage.sound if settings.sound is None else settings.sound
    return wanted and bool(config.audio_config)


def trained_parts(stage: Stage, settings: TrainConfig) -> tuple[str, ...]:
    return stage.parts if settings.parts is None else tuple(settings.parts)


def freeze(model: nn.Module, parts: Sequence[str], sound: bool) -> None:
    """Let gradients reach the parts alone. LoRA comes with :func:`add_lora`."""
    prefixes = {
        "connector": "video_encoder.connector.",
        "compressor": "compressor.",
        "language_model": "language_model.",
    }
    wanted = tuple(prefixes[part] for part in parts if part in prefixes)
    for name, parameter in model.named_parameters():
        heard = sound or not name.startswith(_AUDIO)
        parameter.requires_grad_(name.startswith(wanted) and heard if wanted else False)


def add_lora(model: Any, parts: Sequence[str], settings: TrainConfig) -> Any:
    """The model with LoRA on all matrices of the language model but the output's.

    What else trains (compressor, connector) becomes part of the adapter as a whole.
    """
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    targets = [
        f"language_model.{name}"
        for name, module in model.language_model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and module is not head
    ]
    lora = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=targets,
        modules_to_save=[part for part in parts if part in ("connector", "compressor")] or None,
    )
    silent = not _trains(model, _AUDIO)
    wrapped = get_peft_model(model, lora)
    for name, parameter in wrapped.named_parameters():
        if silent and ".audio_proj." in name:
            parameter.requires_grad_(False)  # PEFT lets the whole of a saved module train
    return wrapped


def _trains(model: nn.Module, prefix: str) -> bool:
    return any(p.requires_grad for n, p in model.named_parameters() if n.startswith(prefix))


def plain_name(name: str) -> str | None:
    """A parameter's name without PEFT's wrapping; None for the copy that PEFT keeps unused."""
    if ".original_module." in name:
        return None
    for wrap in ("base_model.model.", ".modules_to_save.default", ".base_layer"):
        name = name.replace(wrap, "", 1)
    return name


def row_of(name: str) -> str:
    """The table's row of a parameter."""
    if ".lora_" in name:
        return "language model, LoRA"
    return next(title for title, prefix in _ROWS if name.startswith(prefix))


def learning_rate(name: str, settings: TrainConfig) -> float:
    """The rate of a trained parameter."""
    own = None
    if name.startswith("video_encoder.connector."):
        own = settings.connector_learning_rate
    elif name.startswith("compressor."):
        own = settings.compressor_learning_rate
    return settings.learning_rate if own is None else own


def trained_table(model: nn.Module, settings: TrainConfig) -> list[list[str]]:
    """Rows ``[part, parameters, trained or frozen, learning rate]`` and their sum."""
    counts: dict[tuple[str, bool], int] = {}
    rates: dict[str, float] = {}
    for wrapped, parameter in model.named_parameters():
        name = plain_name(wrapped)
        if name is None:
            continue
        place = (row_of(name), parameter.requires_grad)
        counts[place] = counts.get(place, 0) + parameter.numel()
        rates[place[0]] = learning_rate(name, settings)
    rows = [
        [
            title,
            f"{number:,}",
            "trained" if trained else "frozen",
            f"{rates[title]:g}" if trained else "",
        ]
        for (title, trained), number in counts.items()
    ]
    total = sum(number for (_, trained), number in counts.items() if trained)
    return [*rows, ["sum", f"{sum(counts.values()):,}", f"{total:,} trained", ""]]

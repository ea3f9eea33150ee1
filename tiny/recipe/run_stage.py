# SPDX-License-Identifier: Apache-2.0
"""Helpers of a recipe step: processes, stage settings, training with resume, saving, loading."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import PrinterCallback

from tdc.model import TDCForConditionalGeneration
from tdc.processor.processor import TDCProcessor
from tdc.train.config import TrainConfig
from tdc.train.run import SayLosses
from tdc.train.stages import Stage
from tdc.train.trainer import SETTINGS_FILE, build_trainer, last_checkpoint, settings_text

from .examples import Examples
from .settings import Recipe

Say = Callable[[str], None]


def processes() -> tuple[int, int]:
    """This process's number, and the number of processes."""
    state = PartialState(cpu=True)
    return state.process_index, state.num_processes


def is_first() -> bool:
    return processes()[0] == 0


def wait() -> None:
    PartialState(cpu=True).wait_for_everyone()


def stage_settings(
    recipe: Recipe, start: Path, output: Path, sound: bool | None, **changes: Any
) -> TrainConfig:
    """Settings of a stage; ``changes``: further fields of :class:`tdc.train.config.TrainConfig`."""
    fields: dict[str, Any] = {
        "model": str(start),
        "output_dir": str(output),
        "sound": sound,
        "workers": 0,
        "learning_rate": recipe.rate,
        "connector_learning_rate": recipe.connector_rate,
        "compressor_learning_rate": recipe.compressor_rate,
        "lora_rank": 32,
        "lora_alpha": 64,
        "lora_dropout": 0.0,
        "batch_size": recipe.batch // processes()[1],
        "bf16": False,
        "gradient_checkpointing": False,
        "device": "cpu",
        "seed": recipe.seed,
        "logging_steps": recipe.logging_steps,
        "save_steps": recipe.save_steps,
        "save_total_limit": 1,
    }
    return TrainConfig(**{**fields, **changes})


def train_stage(
    settings: TrainConfig,
    stage: Stage,
    model: TDCForConditionalGeneration,
    processor: TDCProcessor,
    data: Examples,
    say: Say,
) -> None:
    """Train from the last checkpoint, if any; save the model and its settings."""
    output = Path(settings.output_dir)
    trainer = build_trainer(settings, stage, model=model, processor=processor, dataset=data)
    trainer.args.train_sampling_strategy = "sequential"
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(SayLosses(say))
    trainer.train(resume_from_checkpoint=last_checkpoint(output))
    trainer.save_model()
    if is_first():
        (output / SETTINGS_FILE).write_text(settings_text(settings, stage.number))
    wait()


def save(model: TDCForConditionalGeneration, processor: TDCProcessor, folder: Path) -> None:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def load(folder: Path) -> tuple[TDCForConditionalGeneration, TDCProcessor]:
    model: Any = TDCForConditionalGeneration.from_pretrained(folder)
    return model.eval(), TDCProcessor.from_pretrained(folder)

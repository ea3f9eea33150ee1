# SPDX-License-Identifier: Apache-2.0
"""One run from settings to a saved model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, TrainerCallback

from .config import TrainConfig
from .stages import get_stage, trained_table
from .trainer import SETTINGS_FILE, TDCTrainer, build_trainer, last_checkpoint, settings_text


class SayLosses(TrainerCallback):
    """One line per logged step."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if state.is_world_process_zero and logs and "loss" in logs:
            self.say(
                f"step {state.global_step:,} of {state.max_steps:,}: loss {float(logs['loss']):.4f}"
                f", learning rate {float(logs['learning_rate']):.3g}"
            )


def train(
    settings: TrainConfig,
    stage: int,
    *,
    report: Callable[[str, list[list[str]]], None] = lambda title, rows: None,
    say: Callable[[str], None] = lambda line: None,
    dry_run: bool = False,
) -> TDCTrainer:
    """Train one stage and save it in ``settings.output_dir``.

    Args:
        report: called with a title and the rows of :func:`tdc.train.stages.trained_table`.
        say: called with one line per logged step.
        dry_run: stop before the first step.

    Raises:
        InputError: settings, parts or records that do not fit.
    """
    trainer: Any = build_trainer(settings, stage)
    if trainer.is_world_process_zero():
        config = trainer.data_collator.config
        title = (
            f"stage {stage}, {get_stage(stage).title}: {len(trainer.train_dataset):,} records, "
            f"{config.frame_grid**2} tokens a frame"
        )
        report(title, trained_table(trainer.model, settings))
    if dry_run:
        return trainer
    trainer.remove_callback(PrinterCallback)  # says the same in another form, on stdout
    trainer.add_callback(SayLosses(say))
    checkpoint = last_checkpoint(settings.output_dir) if settings.resume else None
    if checkpoint is not None and trainer.is_world_process_zero():
        say(f"going on from {checkpoint}")
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    if trainer.is_world_process_zero():
        (Path(settings.output_dir) / SETTINGS_FILE).write_text(settings_text(settings, stage))
        say(f"{settings.output_dir}: trained")
    return trainer

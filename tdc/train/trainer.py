# SPDX-License-Identifier: Apache-2.0
"""A ``transformers.Trainer`` for one stage."""

from __future__ import annotations

import dataclasses
import gc
import inspect
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from ..encoder.feature_store import FeatureStore, towers_fingerprint
from ..errors import InputError
from ..model import TDCForConditionalGeneration
from ..processor.processor import TDCProcessor
from ..prompt import IGNORE_INDEX
from .config import TrainConfig
from .data.collator import Collator
from .data.records import RecordDataset
from .data.turns import around_media, separate
from .stages import (
    Stage,
    add_lora,
    freeze,
    get_stage,
    hears,
    learning_rate,
    plain_name,
    trained_parts,
)
from .starting_model import starting_model

SETTINGS_FILE = "tdc_train.json"  # stage and settings, beside what was trained with them


class TDCTrainer(Trainer):
    """The Trainer, with a learning rate per part. Build it with :func:`build_trainer`."""

    settings: TrainConfig

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            model = self.model if model is None else model
            decaying = set(self.get_decay_parameter_names(model))
            groups: dict[tuple[float, bool], list[Any]] = {}
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    rate = learning_rate(plain_name(name) or name, self.settings)
                    groups.setdefault((rate, name in decaying), []).append(parameter)
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, model)
            decay = self.args.weight_decay
            self.optimizer = kind(
                [
                    {"params": members, "lr": rate, "weight_decay": decay if decays else 0.0}
                    for (rate, decays), members in groups.items()
                ],
                **options,
            )
        return self.optimizer


class _KeepSettings(TrainerCallback):
    """Writes the settings beside every checkpoint, so that ``tdc merge`` finds the base model."""

    def __init__(self, text: str) -> None:
        self.text = text

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            folder = Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"
            (folder / SETTINGS_FILE).write_text(self.text)


def settings_text(settings: TrainConfig, stage: int) -> str:
    """The settings file beside an adapter, for ``tdc merge``."""
    facts = {"stage": stage, "settings": dataclasses.asdict(settings)}
    return json.dumps(facts, indent=2) + "\n"


def build_trainer(
    settings: TrainConfig,
    stage: int | Stage,
    *,
    model: TDCForConditionalGeneration | None = None,
    processor: TDCProcessor | None = None,
    dataset: Dataset | None = None,
) -> TDCTrainer:
    """Everything that ``tdc train`` does before the first step.

    Args:
        settings: see :class:`tdc.train.config.TrainConfig`.
        stage: its number, or a stage of your own.
        model, processor: to train instead of what the settings name; the model's grids stay as they
            are.
        dataset: examples instead of ``settings.data``; whatever
            :func:`tdc.train.data.records.parse` takes.

    Raises:
        InputError: settings, parts or records that do not fit.
    """
    stage = get_stage(stage) if isinstance(stage, int) else stage
    arguments = training_arguments(settings)
    set_seed(settings.seed)
    if model is None or processor is None:
        model, processor, _ = starting_model(settings, stage)
    parts = trained_parts(stage, settings)
    if stage.sound and settings.sound is None and not model.config.audio_config:
        raise InputError(
            f"stage {stage.number} is about sound, but the model has no audio encoder; give beats, "
            "or sound: false"
        )
    sound = hears(stage, settings, model.config)
    if dataset is None:
        dataset = RecordDataset(
            settings.data, settings.data_folder, settings.on_bad_record, stage.kinds
        )
    attention = model.language_model.config._attn_implementation
    if settings.separate_turns and attention != "sdpa":
        raise InputError(
            f"separate_turns needs a mask that {attention} attention does not take; load the "
            'language model with attn_implementation="sdpa"'
        )
    prepared = prepare_model(model, parts, sound, settings)
    model.language_model.register_forward_pre_hook(LanguageModelInputs(model), with_kwargs=True)
    store = None
    if settings.feature_cache is not None:
        fingerprint = towers_fingerprint(model.video_encoder, model.config)
        store = FeatureStore(settings.feature_cache, fingerprint)
    substitute = dataset.after if isinstance(dataset, RecordDataset) else None
    collator = Collator(
        processor,
        sound,
        settings.max_frames,
        store,
        substitute if settings.on_bad_record == "skip" else None,
        settings.separate_turns,
    )
    trainer = TDCTrainer(
        model=prepared,
        args=arguments,
        train_dataset=dataset,
        data_collator=collator,
        processing_class=processor,
        callbacks=[_KeepSettings(settings_text(settings, stage.number))],
    )
    trainer.settings = settings
    return trainer


class LanguageModelInputs:
    """A pre-hook of the language model: the same loss for less, on any number of processes.

    Logits are computed only where some row has a label: all of 8,192 tokens and 152,064 words take
    5 GB in fp32, and their gradient as much again. Padding on the right needs no mask, as nothing
    causal looks to the right, and attention without a mask skips what lies above the diagonal.

    A batch of text uses no connector, and one of short videos no Q-Former. Several processes must
    agree on which parameters get gradients (FSDP 2 sends only those, DDP waits for all), so there
    every trained one takes part, with a factor of zero.
    """

    def __init__(self, model: TDCForConditionalGeneration) -> None:
        self.model = model

    def __call__(self, module: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        labels, mask = kwargs.get("labels"), kwargs.get("attention_mask")
        turns = kwargs.pop("turns", None)
        if labels is None:
            return args, kwargs
        if turns is not None and mask is not None:
            turns = around_media(turns, mask.sum(1), mask.shape[1])
            kwargs["attention_mask"], kwargs["position_ids"] = separate(turns)
        elif mask is not None and bool(mask[:, 0].all()):
            kwargs |= {"attention_mask": None, "position_ids": None}
        targets = labels[:, 1:]
        columns = (targets != IGNORE_INDEX).any(0).nonzero().squeeze(1)
        if len(columns) and "logits_to_keep" in inspect.signature(module.forward).parameters:
            kwargs |= {"logits_to_keep": columns, "shift_labels": targets[:, columns]}
        if torch.distributed.is_initialized() and torch.is_grad_enabled():
            embeds = kwargs["inputs_embeds"]
            parts = (self.model.video_encoder.connector, self.model.compressor)
            trained = [p for part in parts for p in part.parameters() if p.requires_grad]
            nothing = sum((p.flatten()[0] * 0 for p in trained), embeds.new_zeros(()))
            kwargs["inputs_embeds"] = embeds + nothing.to(embeds.dtype)
        return args, kwargs


def prepare_model(
    model: TDCForConditionalGeneration, parts: tuple[str, ...], sound: bool, settings: TrainConfig
) -> Any:
    """Freeze what does not train, add LoRA, choose dtypes and what FSDP wraps."""
    freeze(model, parts, sound)
    # FSDP gathers a module's weights when its forward runs. The language model's layers run through
    # theirs on every process and in every step; connector and compressor are read directly, and a
    # batch without video runs no tower: those stay in the outermost unit.
    model._no_split_modules = list(getattr(model.language_model, "_no_split_modules", None) or [])
    model.config.text_config.use_cache = False  # past keys are of no use in training
    if settings.bf16 and not _uses_fsdp():  # FSDP wants one dtype, and casts by itself
        encoder = model.video_encoder
        for frozen in (encoder.siglip, encoder.dinov2, encoder.beats):
            if frozen is not None:
                frozen.to(torch.bfloat16)
        if "lora" in parts:
            model.language_model.to(torch.bfloat16)
    return add_lora(model, parts, settings) if "lora" in parts else model


def training_arguments(settings: TrainConfig) -> TrainingArguments:
    """The same settings in transformers' words."""
    output = Path(settings.output_dir)
    if output.is_file():
        raise InputError(f"output_dir: {output} is a file; expected a folder")
    return TrainingArguments(
        output_dir=str(output),
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.lr_scheduler,
        warmup_steps=settings.warmup_ratio,  # below 1: a share of all steps
        weight_decay=settings.weight_decay,
        adam_beta1=settings.adam_betas[0],
        adam_beta2=settings.adam_betas[1],
        max_grad_norm=settings.max_grad_norm,
        bf16=settings.bf16,
        activation_checkpointing=settings.gradient_checkpointing,
        # Re-entrant checkpointing asks for inputs with gradients, which LoRA's are without.
        activation_checkpointing_kwargs={"use_reentrant": False},
        ddp_find_unused_parameters=False,  # LanguageModelInputs sees to it that there are none
        use_cpu=settings.device == "cpu",
        seed=settings.seed,
        full_determinism=settings.deterministic,
        logging_steps=settings.logging_steps,
        report_to=["tensorboard"] if settings.tensorboard else [],
        save_steps=settings.save_steps,
        save_total_limit=settings.save_total_limit,
        dataloader_num_workers=settings.workers,
        dataloader_persistent_workers=settings.workers > 0,
        remove_unused_columns=False,
        disable_tqdm=True,
    )


def last_checkpoint(output_dir: str | os.PathLike[str]) -> str | None:
    """The newest checkpoint that was written to its end: the Trainer's state comes last."""
    found = sorted(
        Path(output_dir).glob("checkpoint-*/trainer_state.json"),
        key=lambda path: int(path.parent.name.rpartition("-")[2]),
        reverse=True,
    )
    for path in found:
        try:
            json.loads(path.read_text())
        except ValueError:
            continue  # the writing of this file itself was cut off
        return str(path.parent)
    return None


def _uses_fsdp() -> bool:
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("1", "true")


def leave_process_group() -> None:
    """End the threads of ``torch.distributed``, once the trainers are gone. The last act of a run.

    gloo's thread lets go of the last tensor after the collective has returned, and needs Python's
    lock for it: a process that is being torn down by then dies of SIGABRT.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        gc.collect()  # a trainer's model is full of circles, and DistributedDataParallel in them
        torch.distributed.destroy_process_group()

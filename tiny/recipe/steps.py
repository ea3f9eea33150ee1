# SPDX-License-Identifier: Apache-2.0
"""The whole training of the tiny TDC, from a seed to a folder for ``tdc chat --model``.

Every step leaves its result in its own folder and is skipped if the result exists; an interrupted
one continues from its last checkpoint. Under ``torchrun`` the processes share each batch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import PrinterCallback, TrainerCallback, TrainingArguments, set_seed

from tdc.model import TDCForConditionalGeneration
from tdc.processor.processor import TDCProcessor
from tdc.train.merge import merge_adapter
from tdc.train.run import SayLosses
from tdc.train.stages import Stage, get_stage
from tdc.train.starting_model import starting_model
from tdc.train.trainer import SETTINGS_FILE, last_checkpoint

from ..model import new_model, new_processor
from . import examples
from .card import write_finished
from .clip_features import ClipFeatures, training_clip
from .compressor_labels import Frames, LabelledCompressor, LabelledConnector, Pairs
from .encoder_labels import AccuracyTrainer, LabelledSound, LabelledTower, Pictures, Sounds
from .examples import Examples, Mixture
from .language_model import KeptContexts, LanguageAlone, StopAfter, Talks, collate
from .run_stage import Say, is_first, load, processes, save, stage_settings, train_stage, wait
from .settings import Recipe
from .threshold import similarity_threshold

ACCURACY_FILE = "accuracy.json"  # of a step on labels: running mean over its last batches
COMPRESSOR = replace(get_stage(2), title="the compressor on labels", sound=True)
LANGUAGE = replace(get_stage(2), title="the language model alone", sound=True)


def run(recipe: Recipe, say: Say = print) -> Path:
    """Run all steps; returns the folder of the finished model."""
    clips, folder = align(recipe, say)
    start = partial(_stage, recipe, clips, say)
    # Not in the paper. Without these steps, questions about whole clips stay near chance for hours.
    folder = _part(recipe, say, "compressor-labels", COMPRESSOR, folder, clips)
    folder = _part(recipe, say, "language", LANGUAGE, folder, clips)
    folder = start("stage2", get_stage(2), folder, recipe.videos, examples.videos)
    folder = start("stage3", get_stage(3), folder, recipe.audio_visual, examples.sounding)
    merged, finished = recipe.out / "merged", recipe.out / "tiny"
    if is_first():
        if not merged.exists():
            merge_adapter(folder, merged)
        if not finished.exists():
            write_finished(recipe, merged, finished)
    wait()
    return finished


def align(recipe: Recipe, say: Say) -> tuple[ClipFeatures, Path]:
    """Encoders, their features of the training clips, stage 1 on pictures, and the connector at the
    smaller grid of stage 2."""
    encoders = train_encoders(recipe, say)
    clips = encoded_clips(recipe, encoders, say)
    connector = _part(recipe, say, "connector-labels", get_stage(1), encoders, clips)
    stage = (get_stage(1), connector, recipe.images, examples.images)
    aligned = _stage(recipe, clips, say, "stage1", *stage)
    return clips, _part(recipe, say, "frame-labels", get_stage(2), aligned, clips)


# --- encoders ------------------------------------------------------------------------------------


def train_encoders(recipe: Recipe, say: Say) -> Path:
    """Train vision towers and audio encoder of an otherwise new model."""
    folder = recipe.out / "encoders"
    if (folder / "config.json").exists():
        return folder
    model = new_model(recipe.seed)
    encoder: Any = model.video_encoder
    for number, name in enumerate(("siglip", "dinov2")):
        set_seed(recipe.seed)  # for the head, also if the tower before was not trained just now
        labelled = LabelledTower(getattr(encoder, name))
        data = Pictures(recipe.pictures, labelled.grid, 1000 * recipe.seed + 11 + number)
        _fit(recipe, name, labelled, data, 48, say)
    set_seed(recipe.seed)
    _fit(recipe, "beats", LabelledSound(encoder.beats), _sounds(recipe), 16, say)
    model.config.similarity_threshold = similarity_threshold(encoder.dinov2, recipe.seed, say)
    if is_first():
        save(model.eval(), new_processor(model.config), folder)
    wait()
    return folder


def _sounds(recipe: Recipe) -> Sounds:
    return Sounds(recipe.sounds, 1000 * recipe.seed + 13)


def _fit(
    recipe: Recipe,
    name: str,
    module: nn.Module,
    data: Dataset,
    batch: int,
    say: Say,
    rate: float | None = None,
    collate: Callable[[Any], Any] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> None:
    set_seed(recipe.seed)
    output = recipe.out / f"fit-{name}"
    done = output / "weights.pt"
    if not done.exists():
        arguments = TrainingArguments(
            output_dir=str(output),
            num_train_epochs=1,
            per_device_train_batch_size=batch // processes()[1],
            ddp_find_unused_parameters=True,  # the mask token of self-supervision
            learning_rate=recipe.encoder_rate if rate is None else rate,
            lr_scheduler_type="cosine",
            warmup_steps=0.03,
            use_cpu=True,
            seed=recipe.seed,
            logging_steps=recipe.logging_steps,
            save_steps=recipe.save_steps,
            save_total_limit=1,
            report_to=[],
            remove_unused_columns=False,
            disable_tqdm=True,
            train_sampling_strategy="sequential",
        )
        trainer = AccuracyTrainer(
            model=module, args=arguments, train_dataset=data, data_collator=collate
        )
        trainer.remove_callback(PrinterCallback)
        for callback in (SayLosses(lambda line: say(f"{name}: {line}")), *callbacks):
            trainer.add_callback(callback)
        trainer.train(resume_from_checkpoint=last_checkpoint(output))
        say(f"{name}: accuracy {trainer.accuracy:.3f}")
        if is_first():
            (output / ACCURACY_FILE).write_text(json.dumps(trainer.accuracy))
            torch.save(module.state_dict(), done)
        wait()
    module.load_state_dict(torch.load(done))


def encoded_clips(recipe: Recipe, encoders: Path, say: Say) -> ClipFeatures:
    """Features of the training clips from the frozen encoders."""
    clips = ClipFeatures(
        recipe.out / "features", partial(training_clip, recipe.seed + 1), recipe.clips
    )
    model, _ = load(encoders)
    for some in (clips, clips.recolored):
        some.write(model.video_encoder, processes(), say)
    wait()
    return clips


def _part(
    recipe: Recipe, say: Say, name: str, stage: Stage, start: Path, clips: ClipFeatures
) -> Path:
    """Train one part alone: connector or compressor on labels, or the language model on kept
    contexts."""
    output = recipe.out / name
    if (output / "config.json").exists():
        return output
    settings = stage_settings(recipe, start, output, stage.sound)
    model, processor, _ = starting_model(settings, stage)
    if stage is COMPRESSOR:
        compressor_on_labels(recipe, name, model, processor, clips, say)
    elif stage is LANGUAGE:
        language_alone(recipe, name, model, processor, clips, say)
    else:
        set_seed(recipe.seed)  # for the head
        labelled = LabelledConnector(model)
        seed = 1000 * recipe.seed + 14
        data = Frames(clips, recipe.labelled_frames, labelled.grid, seed)
        # After stage 1 the language model reads these tokens: they must not change much.
        rate = recipe.encoder_rate / (1 if stage.full_grid else 3)
        _fit(recipe, name, labelled, data, recipe.batch, say, rate)
    if is_first():
        save(model.eval(), processor, output)
    wait()
    return output


def compressor_on_labels(
    recipe: Recipe,
    name: str,
    model: TDCForConditionalGeneration,
    processor: TDCProcessor,
    clips: ClipFeatures,
    say: Say,
    sound: bool = True,
) -> None:
    """Train the compressor alone, on labels of pairs of frames."""
    set_seed(recipe.seed)  # for the heads
    data = Pairs(clips, recipe.labelled_pairs, processor, 1000 * recipe.seed + 15, sound)
    # At 3e-3 three of the four tokens became alike: 0.29 right after 10,000 steps.
    _fit(recipe, name, LabelledCompressor(model), data, recipe.batch, say, recipe.rate)


def language_alone(
    recipe: Recipe,
    name: str,
    model: TDCForConditionalGeneration,
    processor: TDCProcessor,
    clips: ClipFeatures,
    say: Say,
) -> None:
    """Train the language model alone, on kept contexts."""
    contexts = KeptContexts(recipe.out / "contexts", clips)
    contexts.write(model, processor, processes(), say)
    wait()
    data = Talks(contexts, processor, recipe.schedule, recipe.batch, 1000 * recipe.seed + 16)
    stop = StopAfter(recipe.talks // recipe.batch)
    set_seed(recipe.seed)  # for the heads
    _fit(recipe, name, LanguageAlone(model), data, recipe.batch, say, recipe.rate, collate, [stop])


# --- stages --------------------------------------------------------------------------------------


def _stage(
    recipe: Recipe,
    clips: ClipFeatures,
    say: Say,
    name: str,
    stage: Stage,
    start: Path,
    size: int,
    mixture: Mixture,
) -> Path:
    """Train one of the paper's stages from the folder ``start``; returns the stage's folder."""
    output = recipe.out / name
    if (output / SETTINGS_FILE).exists():
        return output
    # Examples of stage 2 drop the sound of clips, but not that of single frames.
    # Stage 1 keeps its turns in a row, as in the authors' data.
    late = stage.number > 1
    rate = recipe.late_rate if late else recipe.rate
    changes = {"separate_turns": late, "learning_rate": rate}
    settings = stage_settings(recipe, start, output, True, **changes)
    model, processor, _ = starting_model(settings, stage)
    seed = 1000 * recipe.seed + 100 + len(name)
    data = Examples(clips, size, recipe.batch, mixture, stage.sound, seed)
    train_stage(settings, stage, model, processor, data, lambda line: say(f"{name}: {line}"))
    return output

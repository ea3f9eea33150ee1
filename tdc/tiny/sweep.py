# SPDX-License-Identifier: Apache-2.0
"""Runs the table of ablations: trains and asks what has no result yet.

Each variant (setting and seed) has a folder of its own. A result appears whole or not at all, what
has one is left alone, and training that was cut off goes on from its last checkpoint. Under
``torchrun`` the processes share each batch, and the sets of clips that a variant is asked about.
"""

from __future__ import annotations

import json
import platform
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from tdc._media import whole_file
from tdc.errors import InputError
from tdc.loading import load_model
from tdc.train.stages import get_stage
from tdc.train.starting_model import starting_model
from tdc.train.trainer import SETTINGS_FILE

from . import examples
from .ablations import BASELINE, Ablation, Setting, chosen, configured
from .config import new_model, new_processor
from .examples import Examples
from .features import ClipFeatures, training_clip
from .measures import SETS, ask_long, ask_set
from .recipe import (
    Recipe,
    Say,
    align,
    compressor_on_labels,
    is_first,
    language_alone,
    load,
    processes,
    save,
    stage_settings,
    train_stage,
    wait,
)

RESULT, BUDGET_FILE = "result.json", "budget.json"
_EQUAL = ("examples", "batch", "clips", "questions")  # of every variant in a folder


@dataclass(frozen=True)
class Sweep:
    """What to run.

    Attributes:
        out: a folder ``<ablation>/<setting>/seed-<n>`` per variant.
        recipe: ``recipe.out`` holds, or will hold, what it trains up to stage 1.
        examples: of each of the three steps of a variant.
        seeds: variants per setting.
        only: names of ablations; None: all.
        clips, questions: asked after training, per kind of clip and per clip.
        model: folder of the model that LVCoT asks; None: ``tiny`` of the recipe.
    """

    out: Path
    recipe: Recipe
    examples: int = 24_000
    seeds: int = 3
    only: tuple[str, ...] | None = None
    clips: int = 60
    questions: int = 4
    model: Path | None = None

    @property
    def batch(self) -> int:
        return self.recipe.batch


@dataclass(frozen=True)
class Variant:
    ablation: Ablation
    setting: Setting
    seed: int

    @property
    def place(self) -> tuple[str, str]:
        """Ablation and setting under whose names it is kept."""
        names = (self.ablation.name, self.setting.name)
        return BASELINE if self.setting.is_baseline() else names

    def folder(self, out: Path) -> Path:
        return out.joinpath(*self.place, f"seed-{self.seed}")

    def __str__(self) -> str:
        ablation, setting = self.place
        return f"{ablation}/{setting} seed {self.seed}"


def variants(only: tuple[str, ...] | None, seeds: int) -> list[Variant]:
    """Each once, one seed of everything first.

    Raises:
        InputError: no such ablation.
    """
    listed = [
        Variant(ablation, setting, seed)
        for seed in range(seeds)
        for ablation in chosen(only)
        for setting in ablation.settings
    ]
    listed.sort(key=lambda v: (v.seed, v.place != BASELINE))  # it stands in most tables
    unique: dict[tuple[Any, int], Variant] = {}
    for variant in listed:
        unique.setdefault((variant.place, variant.seed), variant)
    return list(unique.values())


def obstacle(sweep: Sweep, variant: Variant) -> str | None:
    """Why a variant cannot be run; None: it can."""
    finished = sweep.recipe.out / "tiny"
    asks = variant.setting.segments is not None and sweep.model is None
    if asks and not (finished / "config.json").exists():
        return f"there is no trained model in {finished}; expected one there, or --model"
    return variant.setting.lacking()


def run(sweep: Sweep, say: Say = print, detail: Say = lambda line: None) -> None:
    """Everything that has no result yet.

    Args:
        say: called with one line per finished variant, and one per setting that is left out.
        detail: called with what training says in between.

    Raises:
        InputError: no such ablation, results of other lengths in the folder, or no such model.
    """
    listed = variants(sweep.only, sweep.seeds)
    keep_budget(sweep)
    shared = _Shared(sweep, detail)
    told = set()
    for variant in listed:
        if (variant.folder(sweep.out) / RESULT).exists():
            continue
        reason = obstacle(sweep, variant)
        if reason is not None:
            if variant.place not in told:
                say(f"{'/'.join(variant.place)}: left out: {reason}")
            told.add(variant.place)
            continue
        say(f"{variant}: {line(_finish(shared, variant))}")


def keep_budget(sweep: Sweep) -> None:
    """One folder holds variants of one length: others could not be compared."""
    path = sweep.out / BUDGET_FILE
    mine = {name: getattr(sweep, name) for name in _EQUAL}
    if path.exists():
        theirs = json.loads(path.read_text())
        for name, value in mine.items():
            if theirs.get(name) != value:
                raise InputError(
                    f"{sweep.out} holds results with {name} {theirs.get(name)}, got {value}; "
                    "expected the same, or another folder"
                )
    elif is_first():
        try:
            sweep.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write {sweep.out}: {error.strerror}") from None
        _write(path, mine)
    wait()


def line(result: dict[str, Any]) -> str:
    """A result for a terminal."""
    parts = [f"{name} {found['right']:.2f}" for name, found in result["sets"].items()]
    if result["training_seconds"] is not None:
        parts.append(f"{result['training_seconds'] / 60:.1f} min of training")
    return ", ".join(parts)


@dataclass
class _Shared:
    """What all variants use, made when the first of them asks."""

    sweep: Sweep
    detail: Say

    @cached_property
    def aligned(self) -> tuple[ClipFeatures, Path]:
        """Features of the training clips, and the model of stage 1."""
        _check_seed(self.sweep.recipe)
        return align(self.sweep.recipe, self.detail)

    @cached_property
    def finished(self) -> Any:
        """The model that LVCoT asks."""
        loaded = load_model(self.sweep.model or self.sweep.recipe.out / "tiny", "cpu")
        return loaded.model, loaded.processor


def _check_seed(recipe: Recipe) -> None:
    """Features of other clips would be taken for those of ours: their lengths tell."""
    path = recipe.out / "features" / "shard-00000" / "frames.json"
    if path.exists():
        lengths = json.loads(path.read_text())
        ours = [training_clip(recipe.seed + 1, i).num_frames for i in range(len(lengths))]
        if lengths != ours:
            raise InputError(
                f"{recipe.out / 'features'} holds other clips than seed {recipe.seed} draws; "
                f"expected the folder of a recipe with --seed {recipe.seed}"
            )


def _finish(shared: _Shared, variant: Variant) -> dict[str, Any]:
    folder = variant.folder(shared.sweep.out)
    folder.mkdir(parents=True, exist_ok=True)
    measure = _trained if variant.ablation.trains else _answered
    found = measure(shared, variant, folder)
    if is_first():
        _write(folder / RESULT, {**_facts(shared.sweep, variant), **found})
    wait()
    return json.loads((folder / RESULT).read_text())


def _facts(sweep: Sweep, variant: Variant) -> dict[str, Any]:
    ablation, setting = variant.place
    return {
        "ablation": ablation,
        "setting": setting,
        "seed": variant.seed,
        "changes": dict(variant.setting.changes),
        "sound": variant.setting.sound,
        "segments": variant.setting.segments,
        **{name: getattr(sweep, name) for name in _EQUAL},
        "processes": processes()[1],
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
    }


def _write(path: Path, facts: dict[str, Any]) -> None:
    with whole_file(path) as part:
        part.write_text(json.dumps(facts, indent=2) + "\n")


# --- a variant that trains -----------------------------------------------------------------------


def _trained(shared: _Shared, variant: Variant, folder: Path) -> dict[str, Any]:
    """Train, ask about each set of clips, and throw the checkpoints away."""
    whole = not any(folder.iterdir())  # the time of a run that was cut off is not known
    wait()  # nobody starts before everybody has looked
    began = time.perf_counter()
    last = _train(shared, variant, folder)
    seconds = time.perf_counter() - began
    model, processor = load(last)
    number, count = processes()
    for kind in SETS[number::count]:
        path = folder / f"{kind}.json"
        if not path.exists():
            sweep, sound = shared.sweep, variant.setting.sound
            _write(path, ask_set(model, processor, kind, sweep.clips, sweep.questions, sound))
    wait()
    sets = {kind: json.loads((folder / f"{kind}.json").read_text()) for kind in SETS}
    if is_first():
        for checkpoint in folder.glob("*/checkpoint-*"):
            shutil.rmtree(checkpoint)
        shutil.rmtree(folder / "contexts", ignore_errors=True)
    return {
        "training_seconds": seconds if whole else None,
        "parameters": sum(p.numel() for p in model.parameters()),
        "sets": sets,
    }


def _train(shared: _Shared, variant: Variant, folder: Path) -> Path:
    """The compressor on labels, the language model alone, then videos with sound: stages 2 and 3 in
    one, without LoRA."""
    sweep, setting = shared.sweep, variant.setting
    first, last = folder / "language", folder / "videos"
    stage = replace(get_stage(2), title="videos with sound", sound=True)
    size = sweep.examples
    recipe = replace(sweep.recipe, out=folder, seed=variant.seed, labelled_pairs=size, talks=size)
    clips, aligned = shared.aligned

    def say(text: str) -> None:
        shared.detail(f"{variant}: {text}")

    if not (first / "config.json").exists():
        model = start(aligned, setting.changes, variant.seed)
        processor = new_processor(model.config)
        compressor_on_labels(recipe, "labels", model, processor, clips, say, setting.sound)
        language_alone(recipe, "talks", model, processor, clips, say, setting.sound)
        if is_first():
            save(model.eval(), processor, first)
        wait()
    if not (last / SETTINGS_FILE).exists():
        settings = stage_settings(recipe, first, last, setting.sound, separate_turns=True)
        model, processor, _ = starting_model(settings, stage)
        # The same for all variants of a seed, with and without sound.
        seed = 1000 * variant.seed + 201
        data = Examples(clips, size, sweep.batch, examples.videos, True, seed)
        train_stage(settings, stage, model, processor, data, say)
    return last


def start(aligned: Path, changes: Mapping[str, Any], seed: int) -> Any:
    """The model of stage 1 with a new compressor.

    Whatever has the same name and shape in the unchanged model of that seed begins alike.
    """
    trained, _ = load(aligned)
    given = new_model(seed).state_dict()
    for name, tensor in trained.state_dict().items():
        if not name.startswith("compressor."):
            given[name] = tensor
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = type(trained)(configured(trained.config, changes))
    own = model.state_dict()
    fits = {name: x for name, x in given.items() if name in own and x.shape == own[name].shape}
    model.load_state_dict({**own, **fits})
    return model.train()


# --- LVCoT ---------------------------------------------------------------------------------------


def _answered(shared: _Shared, variant: Variant, folder: Path) -> dict[str, Any]:
    """Seeds are sets of clips here. One process alone: another would disturb its clock."""
    assert variant.setting.segments is not None
    found: dict[str, Any] = {}
    if is_first():
        model, processor = shared.finished
        sweep = shared.sweep
        found = ask_long(
            model, processor, variant.setting.segments, sweep.clips, sweep.questions, variant.seed
        )
    return {"training_seconds": None, "sets": {"long": found}}

# SPDX-License-Identifier: Apache-2.0
"""Runs the table of ablations: trains and evaluates every variant without a result.

Each variant (setting and seed) has its own folder. A result appears whole or not at all, finished
variants are skipped, and interrupted training continues from its last checkpoint. Several processes
may work on one folder, each on variants of its own.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import platform
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from tdc.checkpoints.load import TINY, Loaded, load_model
from tdc.errors import InputError
from tdc.files import whole_file
from tdc.model import TDCForConditionalGeneration
from tdc.train.stages import get_stage
from tdc.train.starting_model import starting_model
from tdc.train.trainer import SETTINGS_FILE

from ..model import new_processor
from ..recipe import examples
from ..recipe.clip_features import ClipFeatures, training_clip
from ..recipe.examples import Examples
from ..recipe.run_stage import Say, load, processes, save, stage_settings, train_stage
from ..recipe.settings import Recipe
from ..recipe.steps import ACCURACY_FILE, compressor_on_labels
from .measures import SETS, ask_long, ask_set
from .table import BASELINE, Ablation, Setting, chosen, configured

RESULT, BUDGET_FILE = "result.json", "budget.json"
SEED = 1  # of the training clips
# Seed of the compressor's initial weights, the recipe's. The language model learns to read tokens
# grown from these weights within 150 steps, from others it does not (docs/ablations.md).
INITIAL = 0
PAIRS = 10  # pairs of frames for the compressor on labels, per example of videos
# After 125 steps of videos 0.78 of the standard questions; 0.73 with both rates at 1e-3.
RECIPE = Recipe(Path(), clips=6000, rate=1.5e-3, compressor_rate=1.5e-3, save_steps=100)


@dataclass(frozen=True)
class Sweep:
    """Settings of a run.

    Attributes:
        out: holds ``<ablation>/<setting>/seed-<n>`` per variant, and ``features``.
        examples: videos with sound; the compressor on labels gets ``PAIRS`` times as many pairs.
        seeds: variants per setting.
        only: names of ablations; None: all.
        clips, questions: for evaluation: clips of each kind, questions per clip.
        model: folder of the model that all variants start from and LVCoT uses; None: the
            package's.
        recipe: rates, batch size, number of training clips.
    """

    out: Path
    examples: int = 4_800
    seeds: int = 3
    only: tuple[str, ...] | None = None
    clips: int = 60
    questions: int = 6
    model: Path | None = None
    recipe: Recipe = RECIPE

    def budget(self) -> dict[str, Any]:
        """Settings that all results in one folder share.

        Raises:
            InputError: no weights in the model's folder.
        """
        weights = (self.model or TINY) / "model.safetensors"
        try:
            told = hashlib.sha256(weights.read_bytes()).hexdigest()[:12]
        except OSError as error:
            raise InputError(f"cannot read {weights}: {error.strerror}") from None
        return {
            **{name: getattr(self, name) for name in ("examples", "clips", "questions")},
            "batch": self.recipe.batch,
            "model": told,
        }


@dataclass(frozen=True)
class Variant:
    ablation: Ablation
    setting: Setting
    seed: int

    @property
    def place(self) -> tuple[str, str]:
        """Ablation and setting that name its folder."""
        names = (self.ablation.name, self.setting.name)
        return BASELINE if self.setting.is_baseline() else names

    def folder(self, out: Path) -> Path:
        return out.joinpath(*self.place, f"seed-{self.seed}")

    def __str__(self) -> str:
        ablation, setting = self.place
        return f"{ablation}/{setting} seed {self.seed}"


def variants(only: tuple[str, ...] | None, seeds: int) -> list[Variant]:
    """All variants, each once, one seed of everything first.

    Raises:
        InputError: no such ablation.
    """
    listed = [
        Variant(ablation, setting, seed)
        for seed in range(seeds)
        for ablation in chosen(only)
        for setting in ablation.settings
    ]
    listed.sort(key=lambda v: (v.seed, v.place != BASELINE))  # the baseline stands in most tables
    unique: dict[tuple[Any, int], Variant] = {}
    for variant in listed:
        unique.setdefault((variant.place, variant.seed), variant)
    return list(unique.values())


def run(sweep: Sweep, say: Say = print, detail: Say = lambda line: None) -> None:
    """Run every variant without a result that no other process is working on.

    Args:
        say: called with one line per finished variant, and one per setting that is left out.
        detail: called with the lines of training in between.

    Raises:
        InputError: no such ablation, results of other lengths or another model in the folder, or
            several processes of ``torchrun``.
    """
    listed = variants(sweep.only, sweep.seeds)
    if processes()[1] > 1:
        raise InputError(
            "variants do not share batches; expected no torchrun: start python -m tiny.ablations "
            "several times, on the same folder"
        )
    keep_budget(sweep)
    shared = _Shared(sweep, detail)
    told = set()
    for variant in listed:
        if (variant.folder(sweep.out) / RESULT).exists():
            continue
        reason = variant.setting.lacking()
        if reason is not None:
            if variant.place not in told:
                say(f"{'/'.join(variant.place)}: left out: {reason}")
            told.add(variant.place)
            continue
        found = _finish(shared, variant)
        if found is None:
            detail(f"{variant}: another process is at it")
        else:
            say(f"{variant}: {line(found)}")


def keep_budget(sweep: Sweep) -> None:
    """Refuse a folder with results of another budget: they could not be compared."""
    path = sweep.out / BUDGET_FILE
    mine = sweep.budget()
    if path.exists():
        theirs = json.loads(path.read_text())
        for name, value in mine.items():
            if theirs.get(name) != value:
                raise InputError(
                    f"{sweep.out} holds results with {name} {theirs.get(name)}, got {value}; "
                    "expected the same, or another folder"
                )
        return
    try:
        sweep.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {sweep.out}: {error.strerror}") from None
    _write(path, mine)


@contextmanager
def claimed(folder: Path, patient: bool = False) -> Iterator[bool]:
    """Lock on a folder; yields whether this process got it (``patient``: wait for it).

    The operating system releases the lock when the process ends, however it ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if patient else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def line(result: dict[str, Any]) -> str:
    """A result as one line for the terminal."""
    parts = [f"{name} {found['right']:.2f}" for name, found in result["sets"].items()]
    if result["training_seconds"] is not None:
        parts.append(f"{result['training_seconds'] / 60:.1f} min of training")
    return ", ".join(parts)


@dataclass
class _Shared:
    """Model and features shared by all variants, made on first use."""

    sweep: Sweep
    detail: Say

    @cached_property
    def start(self) -> Loaded:
        """The model that variants start from and LVCoT uses."""
        return load_model(self.sweep.model, "cpu")

    @cached_property
    def clips(self) -> ClipFeatures:
        """Its encoders' features of the training clips."""
        folder = self.sweep.out / "features"
        clips = ClipFeatures(folder, partial(training_clip, SEED), self.sweep.recipe.clips)
        with claimed(folder, patient=True):
            for some in (clips, clips.recolored):
                some.write(self.start.model.video_encoder, say=self.detail)
        return clips


def _finish(shared: _Shared, variant: Variant) -> dict[str, Any] | None:
    """A variant's result; None if another process is working on it."""
    folder = variant.folder(shared.sweep.out)
    with claimed(folder) as ours:
        if not ours:
            return None
        if not (folder / RESULT).exists():
            measure = _trained if variant.ablation.trains else _answered
            found = measure(shared, variant, folder)
            _write(folder / RESULT, {**_facts(shared.sweep, variant), **found})
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
        **sweep.budget(),
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
    }


def _write(path: Path, facts: dict[str, Any]) -> None:
    with whole_file(path) as part:
        part.write_text(json.dumps(facts, indent=2) + "\n")


# --- a variant that trains -----------------------------------------------------------------------


def _trained(shared: _Shared, variant: Variant, folder: Path) -> dict[str, Any]:
    """Train, evaluate on each set of clips, delete the checkpoints."""
    whole = not (folder / "fit-labels").exists()  # an interrupted run's time is unknown
    _ = shared.clips  # made now, outside of the variant's time
    began = time.perf_counter()
    last = _train(shared, variant, folder)
    seconds = time.perf_counter() - began
    sweep, setting = shared.sweep, variant.setting
    config = configured(load(last)[0].config, setting.changes)
    model: Any = TDCForConditionalGeneration.from_pretrained(last, config=config)
    ask = partial(ask_set, model.eval(), new_processor(config))
    sets = {kind: ask(kind, sweep.clips, sweep.questions, setting.sound) for kind in SETS}
    for checkpoint in folder.glob("*/checkpoint-*"):
        shutil.rmtree(checkpoint)
    return {
        "training_seconds": seconds if whole and setting.trained_as is None else None,
        "look_ups": json.loads((last.parent / "fit-labels" / ACCURACY_FILE).read_text()),
        "parameters": sum(p.numel() for p in model.parameters()),
        "sets": sets,
    }


def _train(shared: _Shared, variant: Variant, folder: Path) -> Path:
    """Train the compressor on labels, then connector, compressor and language model on videos with
    sound, without LoRA. Returns the folder of the model."""
    sweep, setting = shared.sweep, variant.setting
    if setting.trained_as is not None:
        like = next(s for s in variant.ablation.settings if s.name == setting.trained_as)
        twin = replace(variant, setting=like)
        with claimed(twin.folder(sweep.out), patient=True):
            return _train(shared, twin, twin.folder(sweep.out))
    first, last = folder / "labels", folder / "videos"
    stage = replace(get_stage(2), title="videos with sound", sound=True)
    pairs = PAIRS * sweep.examples
    recipe = replace(sweep.recipe, out=folder, seed=variant.seed, labelled_pairs=pairs)

    def say(text: str) -> None:
        shared.detail(f"{variant}: {text}")

    if not (first / "config.json").exists():
        model = start(shared.start.model, setting.changes, variant.seed)
        processor = new_processor(model.config)
        compressor_on_labels(recipe, "labels", model, processor, shared.clips, say, setting.sound)
        save(model.eval(), processor, first)
    if not (last / SETTINGS_FILE).exists():
        settings = stage_settings(recipe, first, last, setting.sound, separate_turns=True)
        model, processor, _ = starting_model(settings, stage)
        # The same for all variants of a seed, with and without sound.
        seed = 1000 * variant.seed + 201
        data = Examples(shared.clips, sweep.examples, recipe.batch, examples.sounding, True, seed)
        train_stage(settings, stage, model, processor, data, say)
    return last


def start(trained: Any, changes: Mapping[str, Any], seed: int) -> Any:
    """A trained model with the changed configuration and an untrained compressor.

    Parameters that the changes add or reshape are drawn from the seed.
    """
    plain, model = _new(trained.config, {}, INITIAL), _new(trained.config, changes, seed)
    given = {**plain.state_dict(), **_without_compressor(trained)}
    own = model.state_dict()
    fits = {name: x for name, x in given.items() if name in own and x.shape == own[name].shape}
    model.load_state_dict({**own, **fits})
    return model.train()


def _new(config: Any, changes: Mapping[str, Any], seed: int) -> TDCForConditionalGeneration:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TDCForConditionalGeneration(configured(config, changes))


def _without_compressor(model: Any) -> dict[str, torch.Tensor]:
    tensors = model.state_dict().items()
    return {name: x for name, x in tensors if not name.startswith("compressor.")}


# --- LVCoT ---------------------------------------------------------------------------------------


def _answered(shared: _Shared, variant: Variant, folder: Path) -> dict[str, Any]:
    """Evaluate LVCoT without training; seeds are sets of clips here."""
    segments, sweep = variant.setting.segments, shared.sweep
    assert segments is not None
    model, processor = shared.start.model, shared.start.processor
    found = ask_long(model, processor, segments, sweep.clips, sweep.questions, variant.seed)
    return {"training_seconds": None, "sets": {"long": found}}

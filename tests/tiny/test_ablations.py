# SPDX-License-Identifier: Apache-2.0
"""The sweep of ablations: its table, and its runs at a micro budget."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers.utils import logging as transformers_logging

from tdc.checkpoints.load import TINY
from tdc.errors import InputError
from tdc.train.trainer import SETTINGS_FILE
from tiny.ablations import measures, sweep
from tiny.ablations import table as ablations
from tiny.ablations.report import read
from tiny.ablations.sweep import RESULT, Sweep, Variant, run, variants
from tiny.ablations.table import ABLATIONS, BASELINE, Setting, chosen, configured, flat
from tiny.eval.evaluate import without_sound
from tiny.model import new_model, new_processor, tiny_config
from tiny.recipe.clip_features import training_clip
from tiny.recipe.run_stage import load
from tiny.recipe.settings import Recipe

transformers_logging.disable_progress_bar()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that knows nothing. Never change its folder."""
    out = tmp_path_factory.mktemp("model")
    new = new_model(7)
    new.save_pretrained(out)
    new_processor(new.config).save_pretrained(out)
    return out


def small(out: Path, model: Path, *only: str, **changes) -> Sweep:
    recipe = Recipe(Path(), clips=20, batch=8, save_steps=1, logging_steps=1)
    fields = {"examples": 32, "seeds": 1, "clips": 1, "questions": 2, "only": only, **changes}
    return Sweep(out, recipe=recipe, model=model, **fields)


# --- the table -----------------------------------------------------------------------------------


def test_table_covers_the_settings():
    names = {a.name: [s.name for s in a.settings] for a in ABLATIONS.values()}
    assert names == {
        "tokens": ["1", "4", "8", "16", "32"],
        "scenes": ["1", "4", "24", "48", "4-lowest", "24-lowest", "48-lowest"],
        "queries": ["pooled", "learned"],
        "static": ["on", "off"],
        "question": ["on", "off"],
        "audio": ["on", "off"],
        "depth": ["1", "2", "3", "4", "5", "6"],
        "width": ["32", "64", "128"],
        "allocation": ["fixed", "adaptive"],
        "lvcot": ["1", "2", "3", "5", "10"],
    }
    assert [s.segments for s in ABLATIONS["lvcot"].settings] == [1, 2, 3, 5, 10]
    assert not [s for s in ABLATIONS["audio"].settings if s.changes]


EACH = [
    pytest.param(setting, id=f"{ablation.name}-{setting.name}")
    for ablation in ABLATIONS.values()
    for setting in ablation.settings
    if setting.segments is None
]


@pytest.mark.parametrize("setting", EACH)
def test_a_setting_changes_its_fields_and_no_others(setting):
    if setting.lacking():
        pytest.skip(setting.lacking())
    before, after = flat(tiny_config()), flat(configured(tiny_config(), setting.changes))
    assert before.keys() == after.keys()
    changed = {name: after[name] for name in after if after[name] != before[name]}
    assert changed == {n: v for n, v in setting.changes.items() if before[n] != v}
    assert setting.is_baseline() == (not changed and setting.sound)


def test_each_trained_ablation_has_the_baseline_once_and_something_else():
    for ablation in ABLATIONS.values():
        same = [s for s in ablation.settings if s.is_baseline()]
        known = [s for s in ablation.settings if not s.lacking()]
        assert len(same) == (1 if ablation.trains and known else 0), ablation.name


def test_the_baseline_is_run_once_and_one_seed_of_everything_comes_first():
    listed = variants(None, 2)
    assert [v.seed for v in listed] == sorted(v.seed for v in listed)
    for seed in (0, 1):
        of_seed = [v for v in listed if v.seed == seed]
        assert [v.place for v in of_seed].count(BASELINE) == 1 and of_seed[0].place == BASELINE
    places = {Variant(a, s, 0).place for a in ABLATIONS.values() for s in a.settings}
    assert len(listed) == 2 * len(places)


def test_a_field_that_does_not_exist_is_a_reason(monkeypatch, model, tmp_path):
    monkeypatch.setattr(ablations, "_unchanged", lambda: {"num_scenes": 24})
    setting = Setting("adaptive", {"context_allocation": "adaptive"})
    assert setting.lacking() == "TDCConfig has no field context_allocation"
    assert not Setting("fixed", {"context_allocation": "fixed"}).is_baseline()
    lines = []
    run(small(tmp_path, model, "allocation", seeds=2), lines.append)
    assert lines == [
        f"allocation/{name}: left out: TDCConfig has no field context_allocation"
        for name in ("fixed", "adaptive")
    ]


def test_names():
    assert [a.name for a in chosen(["depth", "tokens"])] == ["tokens", "depth"]
    assert chosen(None) == list(ABLATIONS.values())
    with pytest.raises(InputError, match="'tokns'; did you mean tokens"):
        chosen(["tokens", "tokns"])


# --- running -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_sweep_goes_on_and_leaves_finished_variants_alone(model, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "PAIRS", 1)
    killed, whole = (
        small(tmp_path / "a", model, "queries"),
        small(tmp_path / "b", model, "queries"),
    )
    second = tmp_path / "a" / "queries" / "learned" / "seed-0"
    done, before, after = [], [], []

    def kill(line: str) -> None:
        before.append(line)
        if line.startswith("queries/learned seed 0: step 3 of 4") and (second / "videos").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(killed, done.append, kill)
    assert len(done) == 1 and done[0].startswith("baseline/default seed 0: standard 0.")
    kept = tmp_path / "a" / "baseline" / "default" / "seed-0" / RESULT
    stamp = kept.stat().st_mtime_ns
    assert not (second / RESULT).exists()

    run(killed, done.append, after.append)
    assert kept.stat().st_mtime_ns == stamp and len(done) == 2
    # One stage was finished, of the other two steps: their checkpoint was there.
    assert [line.partition(": loss")[0] for line in after] == [
        f"queries/learned seed 0: step {step} of 4" for step in (3, 4)
    ]
    assert not list(tmp_path.rglob("checkpoint-*"))
    run(killed, done.append, after.append)
    assert len(done) == 2 and len(after) == 2

    shutil.copytree(tmp_path / "a" / "baseline", tmp_path / "b" / "baseline")
    run(whole, lambda line: None)
    a, b = (load(s.out / "queries/learned/seed-0/videos")[0].state_dict() for s in (killed, whole))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    first, cut = (
        json.loads((s.out / "queries/learned/seed-0" / RESULT).read_text()) for s in (whole, killed)
    )
    assert first["sets"] == cut["sets"] and list(first["sets"]) == list(measures.SETS)
    assert 0 <= first["look_ups"] == cut["look_ups"] < 1
    assert first["training_seconds"] > 0 and cut["training_seconds"] is None
    assert first["changes"] == {"query_type": "learned"} and first["examples"] == 32
    assert first["sets"]["standard"]["questions"] == 2 and first["sets"]["standard"]["tokens"] > 20


@pytest.fixture
def given(monkeypatch):
    """Instead of training, what each stage would have been given, by the name of its folder."""
    seen = {}

    def train_stage(settings, stage, model, processor, data, say):
        out = Path(settings.output_dir)
        seen[out.name] = settings, stage, model, data
        model.save_pretrained(out)
        processor.save_pretrained(out)
        (out / SETTINGS_FILE).write_text("{}")

    monkeypatch.setattr(sweep, "train_stage", train_stage)
    monkeypatch.setattr(sweep, "ask_set", lambda *args: {"right": 0.5, "asked": args[2:]})
    return seen


def run_one(model, out, ablation, name):
    setting = next(s for s in ABLATIONS[ablation].settings if s.name == name)
    variant = Variant(ABLATIONS[ablation], setting, 3)
    return sweep._finish(sweep._Shared(small(out, model), lambda line: None), variant)


def test_a_variant_has_its_settings_in_every_step(given, model, tmp_path):
    run_one(model, tmp_path, "scenes", "4-lowest")
    for _, _, trained, _ in given.values():
        assert trained.config.num_scenes == 4 and trained.config.similarity_threshold is None
    (before,) = tmp_path.glob("**/labels")  # what the last step began with
    config = load(before)[0].config
    assert config.num_scenes == 4 and config.similarity_threshold is None
    assert given["videos"][1].parts == ("connector", "compressor", "language_model")


@pytest.mark.slow
def test_without_sound_the_questions_stay_the_same(given, model, tmp_path, monkeypatch):
    heard = run_one(model, tmp_path / "a", "audio", "on")
    with_sound = [given["videos"][3][i] for i in range(8)]
    assert given["videos"][0].sound is True
    deaf = run_one(model, tmp_path / "b", "audio", "off")
    without = [given["videos"][3][i] for i in range(8)]
    assert given["videos"][0].sound is False
    assert given["videos"][1].sound
    assert [e["conversations"] for e in with_sound] == [e["conversations"] for e in without]
    assert heard["sets"]["slow"]["asked"] == ["slow", 1, 2, True]
    assert deaf["sets"]["slow"]["asked"] == ["slow", 1, 2, False] and not deaf["sound"]

    controls = []

    def refuse(model, processor, asked, *, control, files):
        controls.append(control)
        raise InterruptedError

    monkeypatch.setattr(measures, "evaluate", refuse)
    for sound in (True, False):
        with pytest.raises(InterruptedError):
            measures.ask_set(new_model(0), None, "slow", 1, 1, sound)
    assert controls == [None, without_sound]


@pytest.mark.slow
def test_what_training_cannot_tell_apart_is_trained_once(given, model, tmp_path, monkeypatch):
    most = max(training_clip(sweep.SEED, i).num_frames for i in range(500))
    assert most <= ablations.LONGEST
    asked = []
    monkeypatch.setattr(sweep, "ask_set", lambda m, p, *args: asked.append((m, p)) or {"right": 1})
    for name in ("48", "48-lowest"):
        given.clear()
        found = run_one(model, tmp_path, "scenes", name)
        assert list(given) == ["videos"] and given["videos"][2].config.num_scenes == 24
        assert {m.config.num_scenes for m, _ in asked} == {48}
        assert {p.config.num_scenes for _, p in asked} == {48}
        lowest = given["videos"][2].config.similarity_threshold is None
        assert lowest == name.endswith("lowest")
        assert asked[-1][0].config.similarity_threshold == (None if lowest else 0.5)
        assert found["training_seconds"] is None and found["changes"]["num_scenes"] == 48
    models = {str(path.parent.relative_to(tmp_path)) for path in tmp_path.rglob("videos")}
    assert models == {"baseline/default/seed-3", "scenes/24-lowest/seed-3"}


def test_what_is_not_changed_begins_alike(model):
    trained = load(model)[0]
    given = trained.state_dict()
    narrow, plain, wide, other = (
        sweep.start(
            trained, {f"qformer_config.{k}": v for k, v in changes.items()}, seed
        ).state_dict()
        for changes, seed in (
            *(({"num_hidden_layers": 1}, 5), ({}, 5)),
            *(({"hidden_size": 128}, 5), ({"hidden_size": 128}, 6)),
        )
    )
    fresh = new_model(sweep.INITIAL).state_dict()
    for name, tensor in narrow.items():
        own = name.startswith("compressor.")
        assert torch.equal(tensor, fresh[name] if own else given[name]), name
        assert torch.equal(tensor, plain[name])
    changed = "compressor.output_proj.weight"
    assert wide[changed].shape != plain[changed].shape
    assert not torch.equal(other[changed], wide[changed])


def test_several_processes_share_a_folder(model, tmp_path):
    work = small(tmp_path, model, "lvcot", questions=1)
    lines: list[str] = []
    details: list[str] = []
    with sweep.claimed(tmp_path / "lvcot" / "3" / "seed-0") as ours:
        assert ours
        run(work, lines.append, details.append)
    assert len(lines) == len(list(tmp_path.rglob(RESULT))) == 4
    assert details == ["lvcot/3 seed 0: another process is at it"]
    run(work, lines.append, details.append)
    assert len(lines) == 5 and lines[4].startswith("lvcot/3 seed 0: long ") and len(details) == 1


def test_torchrun_is_refused(model, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "processes", lambda: (0, 2))
    with pytest.raises(InputError, match=r"start python -m tiny\.ablations several times"):
        run(small(tmp_path / "out", model))
    assert not (tmp_path / "out").exists()


def test_lvcot_rows_have_accuracy_and_seconds(model, tmp_path, monkeypatch):
    asked, answer = [], measures.answer_long_video

    def watched(model, processor, video, question, segments, **options):
        asked.append((segments, len(video), options["max_frames"]))
        return answer(model, processor, video, question, segments, **options)

    monkeypatch.setattr(measures, "answer_long_video", watched)
    lines = []
    run(small(tmp_path, model, "lvcot", questions=1), lines.append)
    assert [segments for segments, _, _ in asked] == [1, 2, 3, 5, 10]
    assert len({frames for _, frames, _ in asked}) == 1 and asked[0][1] >= 24
    assert len(lines) == 5 and lines[4].startswith("lvcot/10 seed 0: long 0.")
    for (results,) in read(tmp_path).values():
        found = results["sets"]["long"]
        assert found["questions"] == 1 and found["right"] in (0, 1) and found["seconds"] > 0
        assert results["training_seconds"] is None
    assert not (tmp_path / "features").exists()


def test_a_folder_holds_results_of_one_length(model, tmp_path):
    sweep.keep_budget(small(tmp_path, model))
    sweep.keep_budget(small(tmp_path, model, seeds=9))
    with pytest.raises(InputError, match="holds results with examples 32, got 64"):
        sweep.keep_budget(small(tmp_path, model, examples=64))
    with pytest.raises(InputError, match=r"with model \w{12}, got \w{12}; expected the same"):
        sweep.keep_budget(small(tmp_path, TINY))
    with pytest.raises(InputError, match=r"cannot read .*model.safetensors: No such file"):
        sweep.keep_budget(small(tmp_path / "new", tmp_path))
    assert not (tmp_path / "new").exists()

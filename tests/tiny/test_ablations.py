# SPDX-License-Identifier: Apache-2.0
"""The sweep of ablations: its table, its runs at a micro budget, and its report."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers.utils import logging as transformers_logging

from tdc.cli import main
from tdc.errors import InputError
from tdc.tiny import ablations, measures, sweep
from tdc.tiny.ablation_report import NOT_RUN, fill_page, mean_and_spread, read, report, table
from tdc.tiny.ablations import ABLATIONS, BASELINE, Setting, chosen, configured, flat
from tdc.tiny.config import new_model, new_processor, tiny_config
from tdc.tiny.features import training_clip
from tdc.tiny.recipe import Recipe, load
from tdc.tiny.sweep import RESULT, Sweep, Variant, run, variants
from tdc.train.trainer import SETTINGS_FILE
from tdc.world.evaluate import without_sound

PAGE = Path(__file__).parents[2] / "docs" / "ablations.md"
transformers_logging.disable_progress_bar()


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Models that know nothing, where training would leave them. Never change its folder."""
    out = tmp_path_factory.mktemp("recipe")
    model = new_model(0)
    for name in ("encoders", "stage1", "tiny"):
        model.save_pretrained(out / name)
        new_processor(model.config).save_pretrained(out / name)
    (out / "stage1" / SETTINGS_FILE).write_text("{}")
    return Recipe(out, clips=20, batch=8, save_steps=1, logging_steps=1)


def small(out: Path, recipe: Recipe, *only: str, **changes) -> Sweep:
    fields = {"examples": 32, "seeds": 1, "clips": 1, "questions": 2, "only": only, **changes}
    return Sweep(out, recipe, **fields)


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


def test_a_field_that_does_not_exist_is_a_reason(monkeypatch, recipe, tmp_path):
    monkeypatch.setattr(ablations, "_unchanged", lambda: {"num_scenes": 24})
    setting = Setting("adaptive", {"context_allocation": "adaptive"})
    assert setting.lacking() == "TDCConfig has no field context_allocation"
    assert not Setting("fixed", {"context_allocation": "fixed"}).is_baseline()
    lines = []
    run(small(tmp_path, recipe, "allocation", seeds=2), lines.append)
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


def test_a_killed_sweep_goes_on_and_leaves_finished_variants_alone(recipe, tmp_path):
    killed, whole = (
        small(tmp_path / "a", recipe, "queries"),
        small(tmp_path / "b", recipe, "queries"),
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


def run_one(recipe, out, ablation, name):
    setting = next(s for s in ABLATIONS[ablation].settings if s.name == name)
    variant = Variant(ABLATIONS[ablation], setting, 3)
    return sweep._finish(sweep._Shared(small(out, recipe), lambda line: None), variant)


def test_a_variant_has_its_settings_in_every_step(given, recipe, tmp_path):
    run_one(recipe, tmp_path, "scenes", "4-lowest")
    for _, _, model, _ in given.values():
        assert model.config.num_scenes == 4 and model.config.similarity_threshold is None
    (before,) = tmp_path.glob("**/language")  # what the last step began with
    config = load(before)[0].config
    assert config.num_scenes == 4 and config.similarity_threshold is None
    assert given["videos"][1].parts == ("connector", "compressor", "language_model")


def test_without_sound_the_questions_stay_the_same(given, recipe, tmp_path, monkeypatch):
    heard = run_one(recipe, tmp_path / "a", "audio", "on")
    with_sound = [given["videos"][3][i] for i in range(8)]
    assert given["videos"][0].sound is True
    deaf = run_one(recipe, tmp_path / "b", "audio", "off")
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


def test_what_is_not_changed_begins_alike(recipe):
    folder = recipe.out / "stage1"
    aligned = load(folder)[0].state_dict()
    narrow, plain = (
        sweep.start(folder, changes, 5).state_dict()
        for changes in ({"qformer_config.num_hidden_layers": 1}, {})
    )
    fresh = new_model(5).state_dict()
    for name, tensor in narrow.items():
        own = name.startswith("compressor.")
        assert torch.equal(tensor, fresh[name] if own else aligned[name]), name
        assert torch.equal(tensor, plain[name])
    other = sweep.start(folder, {}, 6).state_dict()
    assert not torch.equal(
        other["compressor.output_proj.weight"], plain["compressor.output_proj.weight"]
    )


def test_lvcot_rows_have_accuracy_and_seconds(recipe, tmp_path, monkeypatch):
    asked, answer = [], measures.answer_long_video

    def watched(model, processor, video, question, segments, **options):
        asked.append((segments, len(video), options["max_frames"]))
        return answer(model, processor, video, question, segments, **options)

    monkeypatch.setattr(measures, "answer_long_video", watched)
    lines = []
    run(small(tmp_path, recipe, "lvcot", questions=1), lines.append)
    assert [segments for segments, _, _ in asked] == [1, 2, 3, 5, 10]
    assert len({frames for _, frames, _ in asked}) == 1 and asked[0][1] >= 24
    assert len(lines) == 5 and lines[4].startswith("lvcot/10 seed 0: long 0.")
    for (results,) in read(tmp_path).values():
        found = results["sets"]["long"]
        assert found["questions"] == 1 and found["right"] in (0, 1) and found["seconds"] > 0
        assert results["training_seconds"] is None
    assert not (recipe.out / "encoder-siglip").exists()


def test_lvcot_without_a_model_is_left_out(tmp_path):
    lines = []
    run(small(tmp_path, Recipe(tmp_path), "lvcot"), lines.append)
    assert len(lines) == 5 and all("there is no trained model in" in line for line in lines)
    assert not list(tmp_path.glob("lvcot/**/*"))


def test_a_folder_holds_results_of_one_length(recipe, tmp_path):
    sweep.keep_budget(small(tmp_path, recipe))
    sweep.keep_budget(small(tmp_path, recipe, seeds=9))
    with pytest.raises(InputError, match="holds results with examples 32, got 64"):
        sweep.keep_budget(small(tmp_path, recipe, examples=64))


def test_features_of_other_clips_are_refused(recipe, tmp_path):
    shard = tmp_path / "features" / "shard-00000"
    shard.mkdir(parents=True)
    lengths = [training_clip(8, i).num_frames for i in range(20)]
    (shard / "frames.json").write_text(json.dumps(lengths))
    sweep._check_seed(replace(recipe, out=tmp_path, seed=7))
    with pytest.raises(InputError, match="holds other clips than seed 0 draws"):
        sweep._check_seed(replace(recipe, out=tmp_path))


# --- the report ----------------------------------------------------------------------------------


def test_mean_and_spread():
    assert mean_and_spread([0.5, 0.7, 0.9]) == "0.70 ± 0.20"
    assert mean_and_spread([0.5, None]) == "0.50"
    assert mean_and_spread([]) == mean_and_spread([None]) == NOT_RUN
    assert mean_and_spread([10.2, 12.2], 0) == "11 ± 1"


def share(right: float | None) -> dict:
    return {"questions": 4, "right": right, "constant": 0.25}


def write_result(out: Path, *place: str, right: float) -> None:
    needs = {need: share(right / 2) for need in measures.NEEDS}
    found = {**share(right), "needs": needs, "tokens": 90, "cuts_f1": 1.0, "seconds": 1.5}
    facts = {
        **{"examples": 32, "batch": 8, "clips": 2, "questions": 2, "processes": 2, "threads": 1},
        **{"machine": "x86", "torch": "2", "training_seconds": 60.0},
    }
    path = out.joinpath(*place, RESULT)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({**facts, "sets": dict.fromkeys(measures.SETS, found)}))


def rows(text: str) -> dict[str, list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in cells}


def test_table_of_what_is_there(tmp_path):
    write_result(tmp_path, "tokens", "8", "seed-0", right=0.4)
    write_result(tmp_path, "tokens", "8", "seed-1", right=0.6)
    write_result(tmp_path, *BASELINE, "seed-0", right=0.3)
    found = rows(table(ABLATIONS["tokens"], read(tmp_path)))
    assert found["tokens"][:5] == list(measures.SETS)
    assert found["8"] == ["0.50 ± 0.10"] * 5 + ["0.25 ± 0.05"] * 4 + ["90 ± 0", "1.00 ± 0.00", "2"]
    assert found["4"][0] == "0.30" and found["4"][-1] == "1"  # the baseline, by another name
    assert found["16"] == [NOT_RUN] * 11 + ["0"]
    assert found["best constant"][0] == "0.25"
    assert rows(table(ABLATIONS["depth"], read(tmp_path)))["2"][0] == "0.30"


def test_report(tmp_path):
    write_result(tmp_path, "lvcot", "3", "seed-0", right=0.4)
    paths = report(tmp_path, chosen(None))
    assert [p.name for p in paths] == ["ablations.md", "lvcot.png"]
    text = paths[0].read_text()
    found = rows(text[text.index("## lvcot") :])
    assert found["3"] == ["0.40", *["0.20"] * 4, "1.50", "1"]
    assert found["10"] == [*[NOT_RUN] * 6, "0"]
    assert "![lvcot](lvcot.png)" in text and "![tokens]" not in text
    assert not list(tmp_path.rglob(".*"))


def test_the_page_has_a_place_for_each_table(tmp_path):
    page = tmp_path / "ablations.md"
    page.write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    write_result(tmp_path, "static", "off", "seed-0", right=0.125)
    paths = fill_page(tmp_path, page, chosen(None))
    assert paths == [page, tmp_path / "ablations" / "static.png"]
    assert (
        "| off | 0.12 |" in page.read_text()
        and "![static](ablations/static.png)" in page.read_text()
    )
    again = page.read_text()
    fill_page(tmp_path, page, chosen(None))
    assert page.read_text() == again
    page.write_text("# Ablations\n")
    with pytest.raises(InputError, match="lacks a place for tokens"):
        fill_page(tmp_path, page, chosen(None))
    assert page.read_text() == "# Ablations\n"


# --- the command ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--only", "tokns"], "did you mean tokens?"),
        (["--only", "colour", "--report"], "expected tokens, scenes"),
        (["--report"], "expected one that tdc ablate wrote"),
        (["--page", "x.md"], "--page goes with --report"),
        (["--model", "nowhere"], "no such folder: nowhere"),
    ],
)
def test_refusals(capsys, tmp_path, arguments, says):
    out = tmp_path / "out"
    assert main(["ablate", str(out), *arguments]) == 2
    caught = capsys.readouterr()
    assert caught.out == "" and caught.err.count("\n") == 1 and says in caught.err
    assert caught.err.startswith("tdc: ") and not out.exists()


def test_list(capsys, tmp_path):
    write_result(tmp_path, *BASELINE, "seed-0", right=0.3)
    assert main(["ablate", str(tmp_path), "--list", "--only", "static", "lvcot"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(
        "static_frames=True" in line and "1 of 3 done (the baseline)" in line for line in lines
    )
    assert any("static_frames=False" in line and "0 of 3 done" in line for line in lines)
    assert any("num_segments=10" in line and "no trained model" in line for line in lines)

# SPDX-License-Identifier: Apache-2.0
"""The recipe of the tiny TDC at a size of seconds: every step runs, repeats and goes on."""

from __future__ import annotations

import copy
import shutil
from functools import partial
from random import Random

import pytest
import torch

from tdc.train.stages import get_stage
from tdc.train.trainer import build_trainer
from tiny.model import new_model, new_processor, tiny_config
from tiny.recipe import compressor_labels as dense
from tiny.recipe import examples
from tiny.recipe import steps as recipe
from tiny.recipe.clip_features import ClipFeatures, clip_features, training_clip
from tiny.recipe.compressor_labels import Frames, LabelledCompressor, LabelledConnector, Pairs
from tiny.recipe.encoder_labels import (
    PATCH_SIZES,
    AccuracyTrainer,
    LabelledSound,
    LabelledTower,
    Pictures,
    Sounds,
    patch_loss,
)
from tiny.world import ask, clip_caption, make_clip, motion, vocabulary
from tiny.world.captions import SINCE
from tiny.world.labels import place_labels
from tiny.world.words import BACKGROUNDS, COLORS, SHAPES, SOUNDS

PLACES = [motion.place_of((10 + 22 * (k % 3), 10 + 22 * (k // 3))) for k in range(9)]
CLIPS = 20  # one of each place of features.TRAINING


@pytest.fixture(scope="module")
def model():
    return new_model(0).eval()


@pytest.fixture(scope="module")
def clips(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    found = ClipFeatures(folder, partial(training_clip, 1), CLIPS)
    found.write(model.video_encoder)
    found.recolored.write(model.video_encoder)
    return found


def test_every_word_of_the_world_is_one_token():
    processor = new_processor(tiny_config())
    for word in vocabulary():
        ids = processor.tokenizer(word).input_ids
        assert len(ids) == 1 and ids[0] != processor.tokenizer.unk_token_id, word
    clip = make_clip(0, 3)
    text = f"{clip_caption(clip)} {ask(clip, 1)[0].choice}"
    assert processor.batch_decode([processor.tokenizer(text).input_ids]) == [text.lower()]
    assert processor.tokenizer("What?").input_ids == processor.tokenizer("what ?").input_ids


def test_stored_features_are_those_of_the_clip(model, clips):
    clip, stored = clips.clip(7), clips[7]
    made = clip_features(model.video_encoder, clip)
    assert len(stored.siglip) == clip.num_frames
    for name in ("siglip", "dinov2", "audio"):
        torch.testing.assert_close(getattr(stored, name), getattr(made, name), rtol=1e-3, atol=1e-3)
    other = clips.recolored[7]
    assert clips.recolored.count == CLIPS // 2
    assert torch.equal(other.audio, stored.audio)
    assert other.siglip.shape == stored.siglip.shape
    assert (other.siglip - stored.siglip).norm() > 0.05 * stored.siglip.norm()
    silent = next(i for i in range(CLIPS) if not any(clips.clip(i).sounds))
    assert clips[silent].audio is not None  # as from its file, which has a track of zeros


@pytest.mark.parametrize("mixture", [examples.images, examples.videos, examples.sounding])
def test_examples_depend_on_their_number_alone(clips, mixture):
    made = [examples.Examples(clips, 64, 8, mixture, False, 5) for _ in range(2)]
    some = [made[0][i] for i in (0, 9, 33, 63)]
    again = [made[1][i] for i in (63, 33, 9, 0)][::-1]
    for one, other in zip(some, again, strict=True):
        assert one["conversations"] == other["conversations"]
    assert len({str(x["conversations"]) for x in some}) > 1


def test_batches_are_of_one_kind(clips):
    data = examples.Examples(clips, 4000, 8, examples.videos, False, 5)
    by_batch = [{_kind(data[8 * batch + i]) for i in range(8)} for batch in range(100)]
    assert all(len(kinds) == 1 for kinds in by_batch)
    assert set.union(*by_batch) == {"image", "frame", "clip"}


def _kind(example):
    if "image" in example:
        return "image"
    return "frame" if len(example["video"].siglip) == 2 else "clip"


def test_no_question_about_sound_without_sound(clips):
    quiet = examples.Examples(clips, 400, 1, examples.videos, False, 5)
    loud = examples.Examples(clips, 400, 1, examples.sounding, True, 5)
    words = ("heard", "beep", "silence")

    def said(examples, kind, word):
        return [x for x in examples if _kind(x) == kind and word in str(x["conversations"])]

    assert not any(said(quiet, kind, word) for kind in ("clip", "image") for word in words)
    assert all(said(quiet, "frame", word) and said(loud, "clip", word) for word in words)
    audio = {_kind(x): x["video"].audio is not None for x in quiet if "video" in x}
    assert audio == {"clip": False, "frame": True}  # the compressor's sound is not forgotten


def test_frames_are_heard_in_stage_2_and_clips_are_not(model, clips, tmp_path, monkeypatch):
    """As they reach the model: a collator without sound would take it from all of them."""
    model.save_pretrained(tmp_path / "start")
    new_processor(model.config).save_pretrained(tmp_path / "start")
    seen = {}

    def collate(settings, stage, model, processor, data, say):
        parts = {"model": model, "processor": processor, "dataset": data}
        trainer = build_trainer(settings, stage, **parts)
        for example in (data[number] for number in range(len(data))):
            if "video" in example:
                (medium,) = trainer.data_collator([example])["features"]
                seen.setdefault(_kind(example), set()).add(medium.audio is not None)

    monkeypatch.setattr(recipe, "train_stage", collate)
    short = recipe.Recipe(tmp_path, batch=1)
    stage = ("stage2", get_stage(2), tmp_path / "start", 40, examples.videos)
    recipe._stage(short, clips, print, *stage)
    assert seen == {"frame": {True}, "clip": {False}}


@pytest.mark.parametrize("sound", [True, False])
def test_a_turn_may_tell_a_scene_and_no_question_comes_twice(clips, sound):
    mixture = examples.sounding
    data = examples.Examples(clips, 300, 1, mixture, sound, 5)
    talks = [x["conversations"] for x in data if _kind(x) == "clip"]
    asked = [[turn["value"] for turn in talk[::2]] for talk in talks]
    assert all(len(set(questions)) == len(questions) for questions in asked)
    told = [
        answer["value"]
        for talk in talks
        for question, answer in zip(talk[::2], talk[1::2], strict=True)
        if "what happens in" in question["value"] and "the video" not in question["value"]
    ]
    assert 0.3 < len(told) / len(talks) < 0.6
    assert all(" on " in text or text.startswith("on ") for text in told)
    assert any("silence" in text or " with " in text for text in told) == sound


def test_what_few_clips_offer_is_asked_often(clips):
    data = examples.Examples(clips, 400, 1, examples.sounding, True, 5)
    talks = [str(x["conversations"]) for x in data if _kind(x) == "clip"]
    assert len([x for x in talks if "what changes in" in x]) > 0.2 * len(talks)


def test_shapes_are_learned_where_colors_are_turned_and_colors_where_not():
    data = Pictures(64, 8, 3)
    plain = [bool(data[i]["plain"]) for i in range(64)]
    assert sum(plain) == 16
    batch = torch.utils.data.default_collate([data[i] for i in range(16)])
    centers, known = batch["centers"], batch["plain"]
    labels = {k: batch[k] for k in ("shape", "color", "background", "texture")}
    scores = torch.zeros(16, 64, sum(PATCH_SIZES), requires_grad=True)
    patch_loss(scores, centers, labels, known)["loss"].backward()
    shape, color, background, *_ = scores.grad.abs().sum(1).split(PATCH_SIZES, -1)
    for grad, learned in ((shape, ~known), (color, known), (background, known)):
        assert torch.equal(grad.sum(-1) > 0, learned)
    world = torch.tensor([tone for tones in BACKGROUNDS.values() for tone in tones])
    corners = batch["pixels"][:, :, 0, 0].float()  # few objects reach there
    near = torch.cdist(corners, world.float()).amin(1) < 40
    assert near[known].float().mean() > 0.9 > 0.6 > near[~known].float().mean()


def learn(labelled, data) -> None:
    """Falls on one batch."""
    batch = torch.utils.data.default_collate([data[i] for i in range(16)])
    trained = [p for p in labelled.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, 3e-3)
    losses = []
    for _ in range(15):
        out = labelled(**batch)
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        losses.append(out["loss"].item())
        assert 0 <= out["accuracy"].item() <= 1
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("name", ["siglip", "dinov2"])
def test_a_tower_learns_its_labels(name):
    torch.manual_seed(0)
    labelled = LabelledTower(getattr(new_model(0).video_encoder, name))
    learn(labelled, Pictures(16, labelled.grid, 3))
    assert labelled.tower.token_grid == tiny_config().tower_grid  # as it was


def test_the_connector_learns_its_labels(clips):
    torch.manual_seed(0)
    labelled = LabelledConnector(new_model(0))
    assert labelled.grid == tiny_config().connector_grid
    learn(labelled, Frames(clips, 16, labelled.grid, 3))


@pytest.mark.parametrize("sound", [True, False])
def test_the_compressor_learns_its_labels_and_nothing_else_learns(clips, sound):
    torch.manual_seed(0)
    model = new_model(0)
    before = {name: p.clone() for name, p in model.named_parameters()}
    data = Pairs(clips, 16, new_processor(model.config), 3, sound)
    assert ("audio" in data[0]) == sound
    learn(LabelledCompressor(model), data)
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed and all(name.startswith("compressor.") for name in changed)


@pytest.mark.parametrize("plain", [True, False])
def test_the_compressor_learns_colors_from_clips_as_they_are(clips, plain):
    model = new_model(0)
    data = Pairs(clips, 64, new_processor(model.config), 3)
    examples = [data[number] for number in range(len(data))]
    alike = [example for example in examples if bool(example["plain"]) == plain]
    assert 16 <= len(alike) <= 48
    labelled = LabelledCompressor(model)
    labelled(**torch.utils.data.default_collate(alike[:16]))["loss"].backward()
    moved = labelled.head.weight.grad.abs().sum(1) > 0
    sizes = dense._PLACE_SIZES
    of_places = moved[: dense.PLACES * sum(sizes.values())].unflatten(0, (dense.PLACES, -1)).any(0)
    learned = {
        n: bool(x.any()) for n, x in zip(sizes, of_places.split([*sizes.values()]), strict=True)
    }
    assert learned == {name: plain or name != "color" for name in sizes}


def test_pairs_are_of_one_scene_and_labelled_as_the_later_frame(clips):
    turned = 0
    for number in range(60):
        clip, first, later, features = dense.some_pair(clips, Random(number))
        scene, time = clip.locate(later)
        assert clip.starts[scene] == first < later and time > 0
        assert len(features.siglip) == clip.num_frames
        labels = place_labels(clip, later)
        visible = clip.scenes[scene].visible(time)
        assert (labels.shape > 0).sum() == len(visible)
        for thing in visible:
            index = PLACES.index(motion.place_of(thing.position(time)))
            assert SHAPES[labels.shape[index] - 1] == thing.shape
            assert list(COLORS)[labels.color[index] - 1] == thing.color_at(time)
            new = not thing.visible(0)
            assert (SINCE[labels.since[index] - 1] == "new") == new
            assert labels.turned[index] == (thing.color_at(time) != thing.color)
        turned += int(labels.turned.any())
        heard = clip.sounds[later]
        assert labels.sound == (0 if heard is None else 1 + SOUNDS.index(heard))
    assert 20 < turned < 40  # few pairs have it, and it is not learned from few


def test_pairs_are_found_where_no_object_turns(clips, monkeypatch):
    calm = next(i for i in range(CLIPS) if all(s.change == "nothing" for s in clips.clip(i).scenes))
    one = dense.ClipFeatures(clips.folder, lambda _: clips.clip(calm), 1)
    monkeypatch.setattr(dense, "TURNED", 1.0)
    clip, first, later, _ = dense.some_pair(one, Random(0))
    assert clip.locate(first)[0] == clip.locate(later)[0]


def test_what_is_gone_is_labelled_where_the_first_frame_shows_it():
    moved = 0
    for clip in (make_clip(3, index, scenes=1) for index in range(400)):
        last = clip.num_frames - 1
        gone = [x for x in clip.scenes[0].visible(0) if not x.visible(last)]
        moved += sum(x.position(0) != x.position(last) for x in gone)
        labels = place_labels(clip, last).gone
        where = {PLACES.index(motion.place_of(x.position(0))): x.shape for x in gone}
        assert {k: SHAPES[label - 1] for k, label in enumerate(labels) if label} == where
    assert moved > 10  # or any place would do


def test_a_second_of_sound_has_the_label_of_the_clip():
    data = Sounds(2, 3)
    clip = make_clip(3, 1, scenes=(2, 4))
    example = data[1]
    labels = example["labels"].tolist()
    heard = clip.sounds[: len(labels)]
    assert [label == 0 for label in labels[: len(heard)]] == [sound is None for sound in heard]
    loud = example["waveform"].unflatten(0, (len(labels), -1)).abs().amax(1) > 0.01
    assert [bool(x) for x in loud[: len(heard)]] == [sound is not None for sound in heard]
    model = LabelledSound(new_model(0).video_encoder.beats)
    model(example["waveform"][None], example["labels"][None])["loss"].backward()


def test_a_step_that_is_done_is_not_done_again(tmp_path, monkeypatch):
    def never(*_, **__):
        raise AssertionError("trained again")

    for name in ("new_model", "starting_model", "stage_settings", "train_stage"):
        monkeypatch.setattr(recipe, name, never)
    short = recipe.Recipe(tmp_path)
    for name in ("encoders", "connector-labels"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").touch()
    assert recipe.train_encoders(short, print) == tmp_path / "encoders"
    again = recipe._part(short, print, "connector-labels", get_stage(1), tmp_path, None)
    assert again == tmp_path / "connector-labels"
    with pytest.raises(AssertionError, match="trained again"):
        recipe._part(short, print, "frame-labels", get_stage(2), tmp_path, None)


@pytest.mark.slow
def test_the_whole_recipe_and_again(tmp_path):
    said: list[str] = []
    sizes = {
        **{"clips": CLIPS, "pictures": 48, "sounds": 16, "images": 8, "talks": 8, "videos": 8},
        **{"labelled_frames": 8, "labelled_pairs": 8, "audio_visual": 8},
        **{"schedule": 16},
        **{"batch": 4, "save_steps": 1, "logging_steps": 1},
    }
    short = recipe.Recipe(tmp_path / "tiny", **sizes)
    folder = recipe.run(short, said.append)
    first = (folder / "model.safetensors").read_bytes()
    count = len(said)
    steps = [line.partition(": loss")[0] for line in said if ": step" in line]
    # 8 examples of the 16 that its schedule is made for.
    alone = [f"language: step {k} of 4" for k in (1, 2)]
    assert [line for line in steps if line.startswith("language")] == alone
    assert recipe.run(short, said.append) == folder
    assert len(said) == count  # nothing is trained twice
    # Cut off in the last stage: it goes on, and nothing before it is touched.
    for name in (recipe.SETTINGS_FILE, "adapter_model.safetensors"):
        (short.out / "stage3" / name).unlink()
    shutil.rmtree(folder)
    shutil.rmtree(short.out / "merged")
    recipe.run(short, said.append)
    assert (folder / "model.safetensors").read_bytes() == first
    assert len(first) < 10 * 2**20
    card = (folder / "README.md").read_text()
    assert "seed 0, batches of 4" in card and "| stage 2 | videos | 8 |" in card


def test_heads_begin_with_the_seed_wherever_the_recipe_goes_on(model, clips, tmp_path):
    def trained(name: str, before: int):
        short = recipe.Recipe(tmp_path / name, labelled_pairs=2, batch=2)
        torch.manual_seed(before)  # whatever ran in this process
        again = copy.deepcopy(model)
        processor = new_processor(model.config)
        recipe.compressor_on_labels(short, "labels", again, processor, clips, print)
        return torch.load(tmp_path / name / "fit-labels" / "weights.pt")

    one, other = trained("a", 1), trained("b", 2)
    assert "lookup.names" in one and all(torch.equal(one[name], other[name]) for name in one)


def test_the_accuracy_of_a_few_batches_is_their_mean():
    trainer = AccuracyTrainer.__new__(AccuracyTrainer)
    assert trainer.accuracy == 0.0
    for right in (0.5, 0.7):
        trainer.compute_loss(
            lambda right: {"loss": 0, "accuracy": right}, {"right": torch.tensor(right)}
        )
    assert abs(trainer.accuracy - 0.6) < 0.01  # the later ones weigh a little more

# SPDX-License-Identifier: Apache-2.0
"""The recipe of the tiny TDC at a size of seconds: every step runs, repeats and goes on."""

from __future__ import annotations

import shutil
from functools import partial

import pytest
import torch

from tdc.tiny import examples, recipe
from tdc.tiny.config import new_model, new_processor, tiny_config
from tdc.tiny.encoders import LabelledSound, LabelledTower, Pictures, Sounds
from tdc.tiny.features import ClipFeatures, clip_features, training_clip
from tdc.train.tower_features import MediaBatch, MediaEncoder
from tdc.world import ask, clip_caption, make_clip, vocabulary
from tdc.world.words import BACKGROUNDS

CLIPS = 20  # one of each place of features.TRAINING


@pytest.fixture(scope="module")
def model():
    return new_model(0).eval()


@pytest.fixture(scope="module")
def clips(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    found = ClipFeatures(folder, partial(training_clip, 1), CLIPS)
    found.write(model.video_encoder)
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
    silent = next(i for i in range(CLIPS) if not any(clips.clip(i).sounds))
    assert clips[silent].audio is not None  # as from its file, which has a track of zeros


@pytest.mark.parametrize("mixture", [examples.images, examples.frames, examples.videos])
def test_examples_depend_on_their_number_alone(clips, mixture):
    made = [examples.Examples(clips, 64, 8, mixture, False, 5) for _ in range(2)]
    some = [made[0][i] for i in (0, 9, 33, 63)]
    again = [made[1][i] for i in (63, 33, 9, 0)][::-1]
    for one, other in zip(some, again, strict=True):
        assert one["conversations"] == other["conversations"]
    assert len({str(x["conversations"]) for x in some}) > 1


def test_batches_are_of_one_kind_and_the_mixture_moves(clips):
    data = examples.Examples(clips, 4000, 8, examples.videos, False, 5)
    kinds = {}
    for batch in range(0, 500, 5):
        of_batch = {_kind(data[8 * batch + i]) for i in range(8)}
        assert len(of_batch) == 1
        kinds.setdefault(batch < 100, []).extend(of_batch)
    assert "image" in kinds[True]
    early, late = (kinds[key].count("clip") / len(kinds[key]) for key in (True, False))
    assert early < late


def _kind(example):
    if "image" in example:
        return "image"
    return "frame" if len(example["video"].siglip) == 2 else "clip"


def test_no_question_about_sound_without_sound(clips):
    quiet = examples.Examples(clips, 400, 1, examples.videos, False, 5)
    loud = examples.Examples(clips, 400, 1, examples.sounding, True, 5)
    words = ("heard", "beep", "silence")
    assert not [x for x in quiet if any(word in str(x["conversations"]) for word in words)]
    assert all([x for x in loud if word in str(x["conversations"])] for word in words)


def test_the_compressor_alone_hides_the_static_frame(model, clips):
    features = MediaEncoder(model.video_encoder).encode(
        MediaBatch([examples.some_frames(clips[i], [0, 1]) for i in (0, 1)])
    )
    # One scene of two frames, whatever an untrained tower says about the pair.
    boundaries = torch.full_like(features.segmentation.boundaries, 2)
    object.__setattr__(features.segmentation, "boundaries", boundaries)
    ids = torch.ones(2, 3, dtype=torch.long)
    whole = model.build_context(features, ids)
    model.__class__ = recipe.CompressorAlone
    try:
        alone = model.build_context(features, ids)
    finally:
        model.__class__ = recipe.TDCForConditionalGeneration
    for one, other in zip(whole.tokens, alone.tokens, strict=True):
        assert other.shape[0] == model.config.num_context_tokens
        assert torch.equal(one[-other.shape[0] - 1 : -1], other)


@pytest.mark.parametrize("name", ["siglip", "dinov2"])
def test_a_tower_learns_its_labels(name):
    torch.manual_seed(0)
    labelled = LabelledTower(getattr(new_model(0).video_encoder, name))
    data = Pictures(16, labelled.grid, 3)
    batch = torch.utils.data.default_collate([data[i] for i in range(16)])
    assert batch["background"].max() < len(BACKGROUNDS)
    optimizer = torch.optim.AdamW(labelled.parameters(), 3e-3)
    losses = []
    for _ in range(15):
        out = labelled(**batch)
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        losses.append(out["loss"].item())
    assert losses[-1] < 0.7 * losses[0]
    assert labelled.tower.token_grid == tiny_config().tower_grid  # as it was


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


@pytest.mark.slow
def test_the_whole_recipe_and_again(tmp_path):
    said: list[str] = []
    sizes = {
        **{"clips": CLIPS, "pictures": 48, "sounds": 16, "images": 8, "frames": 8, "videos": 8},
        **{"audio_visual": 8, "batch": 4, "save_steps": 1, "logging_steps": 1},
    }
    short = recipe.Recipe(tmp_path / "tiny", **sizes)
    folder = recipe.run(short, said.append)
    first = (folder / "model.safetensors").read_bytes()
    count = len(said)
    assert recipe.run(short, said.append) == folder
    assert len(said) == count  # nothing is trained twice
    # Cut off in the last stage: it goes on, and nothing before it is touched.
    for name in (recipe.SETTINGS_FILE, "adapter_model.safetensors"):
        (short.out / "stage3" / name).unlink()
    shutil.rmtree(folder)
    recipe.run(short, said.append)
    assert (folder / "model.safetensors").read_bytes() == first

# SPDX-License-Identifier: Apache-2.0
"""The language model alone: it reads what it reads in the whole model, many questions at once."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from random import Random

import pytest
import torch

from tdc.tiny import examples, language
from tdc.tiny.config import new_model, new_processor
from tdc.tiny.features import ClipFeatures, some_frames, training_clip
from tdc.train.collator import Collator
from tdc.train.tower_features import MediaEncoder
from tdc.train.trainer import LanguageModelInputs
from tdc.world import make_clip
from tdc.world.questions import KINDS
from tdc.world.wording import scene_references

CLIPS = 20


@pytest.fixture(scope="module")
def model():
    return new_model(0).eval()


@pytest.fixture(scope="module")
def processor(model):
    return new_processor(model.config)


@pytest.fixture(scope="module")
def contexts(model, processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("language")
    clips = ClipFeatures(folder / "features", partial(training_clip, 1), CLIPS)
    clips.write(model.video_encoder)
    kept = language.KeptContexts(folder / "contexts", clips)
    kept.write(model, processor, (1, 2), print)
    assert not list(kept.folder.iterdir())  # the only shard is the other process's
    kept.write(model, processor, (0, 2), print)
    assert [path.name for path in kept.folder.iterdir()] == ["shard-00000.pt"]
    return kept


def as_trained_on(contexts, processor, index, which, turns):
    """A batch of the same talk about the clip or the pair of frames itself."""
    clip, features = contexts.clips.clip(index), contexts.clips[index]
    if which >= language.VARIANTS:
        scene, later, _ = language.pair(clip, which - language.VARIANTS)
        features = some_frames(features, [clip.starts[scene], later])
    return Collator(processor, separate_turns=True)([examples._talk("video", features, turns)])


@pytest.mark.parametrize("number", [0, 9, 200, 399])
def test_the_loss_is_that_of_the_whole_model(model, processor, contexts, number, monkeypatch):
    data = language.Talks(contexts, processor, 400, 8, 5)
    seen = {}
    make, encode = data._example, data._encode
    monkeypatch.setattr(data, "_example", lambda *a: seen.update(place=a[:2]) or make(*a))
    monkeypatch.setattr(data, "_encode", lambda turns: seen.update(turns=turns) or encode(turns))
    made = data[number]
    talk = seen["turns"]
    batch = as_trained_on(contexts, processor, *seen["place"], talk)
    features = MediaEncoder(model.video_encoder).encode(batch.pop("media"))
    assert batch["input_ids"][0, 1:].tolist() == made["ids"]
    assert len(set(batch["turns"][0].tolist())) == 1 + len(talk)
    hook = model.language_model.register_forward_pre_hook(
        LanguageModelInputs(model), with_kwargs=True
    )
    with torch.no_grad(), hook:
        whole = model(features=features, **batch).loss
        alone = language.LanguageAlone(new_model(0).eval())
        one = alone(**language.collate([made]))
        # Contexts are kept in fp16.
        torch.testing.assert_close(one["loss"], whole, rtol=2e-3, atol=0)
        # Padding changes nothing, nor what is read together.
        several = [made, *(data[(number + 8 * n) % 400] for n in range(1, language.TOGETHER + 2))]
        every = alone(**language.collate(several))["loss"]
        losses = torch.stack([alone(**language.collate([e]))["loss"] for e in several])
    counts = torch.tensor([sum(x >= 0 for x in example["labels"]) for example in several])
    torch.testing.assert_close(every, (counts * losses).sum() / counts.sum())


def test_one_thing_is_learned_after_another(contexts, processor):
    data = language.Talks(contexts, processor, 4000, 8, 5)
    pair = max(len(contexts[i, language.VARIANTS + k]) for i in range(CLIPS) for k in range(4))
    starts = {
        "look": ("what shape is the", "what color is the", "where is the"),
        "order": ("what color is the background", "what texture is in", "which scene is"),
    }
    begin = 0.0
    for end, kind in examples.LESSONS:
        numbers = range(int(4000 * begin) + 8, int(4000 * end) - 8, 3)
        assert len(numbers) > 10
        for number in numbers:
            *asked, _ = processor.tokenizer.decode(data[number]["ids"]).split("<|question|>")[1:]
            # Some have options, which stand after the question.
            expected = starts.get(kind, ("",))
            assert all(question.strip().startswith(expected) for question in asked)
            assert asked or kind not in ("look", "order", "scenes")
            assert (len(data[number]["context"]) <= pair) == (kind in ("look", "frame"))
        begin = end
    late = [len(data[number]["context"]) for number in range(3000, 4000, 10)]
    assert sum(length > pair for length in late) > len(late) / 2


def test_lessons_of_the_second_round_ask_for_nothing_else(contexts, processor):
    data = language.Talks(contexts, processor, 4000, 8, 5, examples.talks_again)
    starts = {
        "sounds": ("in which scene is the", "which shape flashes while the"),
        "events": ("which shape flashes", "which color flashes", "which sound is heard when"),
        "changes": ("what changes", "to which color", "which shape", "how many objects are there"),
    }
    for begin, end, kind in examples.LESSONS_AGAIN:
        asked = []
        for number in range(int(4000 * begin) + 8, int(4000 * end) - 8, 3):
            # The last one is what the compressor has heard.
            _, *talk, _ = processor.tokenizer.decode(data[number]["ids"]).split("<|question|>")
            asked += [question.strip() for question in talk]
        assert len(asked) > 60
        assert all(question.startswith(starts[kind]) for question in asked)


def test_whole_clips_tell_their_story_where_it_is_to_be_learned(contexts, processor):
    given = (contexts, processor, 400, 8, 5, examples.talks_again)
    plain, labelled = (language.Talks(*given, labelled=labelled) for labelled in (False, True))
    told = []
    for number in range(0, 400, 8):
        assert len(plain[number]["stories"]) == 0
        context, story = (labelled[number][name] for name in ("context", "stories"))
        assert len(story) in (0, len(context))
        told.append(len(story) > 0)
    assert 0 < told.count(False) < told.count(True)  # pairs of frames tell none


def test_contrasts_are_told_apart_by_the_scene_alone():
    asked = 0
    for clip in (make_clip(1, index, scenes=(2, 3)) for index in range(12)):
        questions = examples.contrasts(clip, list(KINDS), Random(0))
        said = defaultdict(set)
        for question in questions:
            names = scene_references(clip, question.scene).values()
            name = max((name for name in names if name in question.text), key=len)
            said[question.text.replace(name, "...")].add(question.answer)
        assert all(len(answers) > 1 for answers in said.values())
        asked += len(questions)
    assert asked > 60


def test_only_the_language_model_learns(contexts, processor):
    model = new_model(0)
    data = language.Talks(contexts, processor, 16, 8, 5)
    found = language.LanguageAlone(model)(**language.collate([data[i] for i in range(8)]))
    found["loss"].backward()
    touched = {name for name, p in model.named_parameters() if p.grad is not None}
    assert touched == {n for n, _ in model.named_parameters() if n.startswith("language_model.")}


def test_the_compressor_hears_the_last_question_and_the_sound(model, processor, contexts, tmp_path):
    data = language.Talks(contexts, processor, 64, 8, 5)
    clips = [contexts.clips.clip(i) for i in range(CLIPS)]
    heard = {language.heard(clip, v).text for clip in clips for v in range(language.VARIANTS)}
    heard |= {language.pair(clip, k)[2].text for clip in clips for k in range(language.PAIRS)}
    for number in range(64):
        text = processor.tokenizer.decode(data[number]["ids"])
        assert text.split("<|question|> ")[-1].partition(" <|answer|>")[0] in heard
    deaf = language.KeptContexts(tmp_path, contexts.clips, sound=False)
    deaf.write(model, processor, (0, 1), print)
    assert any(len(deaf[i, 0]) < len(contexts[i, 0]) for i in range(CLIPS))
    assert all(torch.isfinite(deaf[i, 1]).all() for i in range(CLIPS))

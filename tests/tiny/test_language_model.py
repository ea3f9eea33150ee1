# SPDX-License-Identifier: Apache-2.0
"""The language model alone: it reads what it reads in the whole model, many questions at once."""

from __future__ import annotations

from collections import Counter, defaultdict
from functools import partial
from random import Random

import pytest
import torch

from tdc.train.data.collator import Collator
from tdc.train.trainer import LanguageModelInputs
from tiny.model import new_model, new_processor
from tiny.recipe import examples
from tiny.recipe import language_model as language
from tiny.recipe.clip_features import ClipFeatures, some_frames, training_clip
from tiny.world import make_clip
from tiny.world.labels import UNASKED
from tiny.world.questions import KINDS
from tiny.world.wording import scene_references

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


def answers_alone(example):
    """Without what a clip has told by each frame, what a question is about, and its words."""
    nothing = [UNASKED] * len(example["ids"])
    untold = {"stories": example["stories"][:0], "scenes": nothing, "flashes": nothing}
    return {**example, **untold, "progress": 0.0}


@pytest.mark.parametrize("number", [0, 9, 200, 399])
def test_the_loss_is_that_of_the_whole_model(model, processor, contexts, number, monkeypatch):
    data = language.Talks(contexts, processor, 400, 8, 5)
    seen = {}
    make, encode = data._example, data._encode
    monkeypatch.setattr(data, "_example", lambda *a: seen.update(place=a[:2]) or make(*a))
    monkeypatch.setattr(data, "_encode", lambda *a: seen.update(turns=a[0]) or encode(*a))
    made = answers_alone(data[number])
    talk = seen["turns"]
    batch = as_trained_on(contexts, processor, *seen["place"], talk)
    assert batch["input_ids"][0, 1:].tolist() == made["ids"]
    assert len(set(batch["turns"][0].tolist())) == 1 + len(talk)
    hook = model.language_model.register_forward_pre_hook(
        LanguageModelInputs(model), with_kwargs=True
    )
    with torch.no_grad(), hook:
        whole = model(**batch).loss
        alone = language.LanguageAlone(new_model(0).eval())
        one = alone(**language.collate([made]))
        # Contexts are kept in fp16.
        torch.testing.assert_close(one["loss"], whole, rtol=2e-3, atol=0)
        # Padding changes nothing, nor what is read together.
        others = [data[(number + 8 * n) % 400] for n in range(1, language.TOGETHER + 2)]
        several = [made, *map(answers_alone, others)]
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
        "sounds": ("in which scene is the", "which shape flashes while the"),
        "events": ("which shape flashes", "which color flashes", "which sound is heard when"),
        "changes": ("what changes", "to which color", "which shape", "how many objects are there"),
    }
    for begin, end, kind in examples.LESSONS:
        numbers = range(int(4000 * begin) + 8, int(4000 * end) - 8, 3)
        assert len(numbers) > 10
        asked = []
        for number in numbers:
            # The last one is what the compressor has heard.
            _, *talk, _ = processor.tokenizer.decode(data[number]["ids"]).split("<|question|>")
            assert talk or kind not in ("look", "order", "scenes")
            asked += [question.strip() for question in talk]
            assert (len(data[number]["context"]) <= pair) == (kind in ("look", "frame"))
        assert len(asked) > 30
        # Some have options, which stand after the question.
        assert all(question.startswith(starts.get(kind, ("",))) for question in asked)
    late = [len(data[number]["context"]) for number in range(3000, 4000, 10)]
    assert sum(length > pair for length in late) > len(late) / 2


def test_whole_clips_tell_their_story_and_pairs_of_frames_do_not(contexts, processor):
    data = language.Talks(contexts, processor, 400, 8, 5, examples.sounding)
    pair = max(len(contexts[i, language.VARIANTS + k]) for i in range(CLIPS) for k in range(4))
    told = {True: 0, False: 0}
    for number in range(0, 400, 8):
        context, story = (data[number][name] for name in ("context", "stories"))
        assert len(story) == (len(context) if len(context) > pair else 0)
        told[bool((story[:, 1:] != UNASKED).any())] += 1
    assert told[True] > told[False] > 0


def test_the_end_of_a_question_tells_what_it_is_about(contexts, processor):
    data = language.Talks(contexts, processor, 400, 8, 5, examples.sounding)
    mark = processor.tokenizer.convert_tokens_to_ids("<|answer|>")
    pair = max(len(contexts[i, language.VARIANTS + k]) for i in range(CLIPS) for k in range(4))
    told = Counter()
    for number in range(0, 400, 4):
        example = data[number]
        names = ("ids", "scenes", "flashes")
        ids, scenes, flashes = (torch.tensor(example[name]) for name in names)
        assert (ids[(scenes != UNASKED) | (flashes != UNASKED)] == mark).all()
        if len(example["context"]) <= pair:
            assert (scenes == UNASKED).all() and (flashes == UNASKED).all()
            continue
        asked = processor.tokenizer.decode(ids).split("<|question|> ")[1:]
        about = zip(asked, scenes[ids == mark].tolist(), flashes[ids == mark].tolist(), strict=True)
        for question, scene, flash in about:
            told.update(scene=scene != UNASKED, flash=flash != UNASKED)
            question = question.partition("<|answer|>")[0]
            for other in range(4):
                if f"scene {other + 1} " in question:
                    assert scene == other
                    told[other] += 1
            if "flashes first" in question:
                assert flash == 0 and scene == UNASKED
    assert min(told.values()) > 5 and len(told) == 6


def test_late_examples_tell_attention_where_to_look_and_repeat_questions(contexts, processor):
    data = language.Talks(contexts, processor, 400, 8, 5, examples.sounding)
    alone = language.LanguageAlone(new_model(0).eval())
    assert data[239]["progress"] == 239 / 400
    example = next(e for e in map(data.__getitem__, range(400)) if len(e["stories"]))
    losses = []
    for progress in (0.0, language.LOOKING, language.REPEATING):
        with torch.no_grad():
            found = alone(**language.collate([{**example, "progress": progress}]))
        losses.append(found["loss"].item())
    # Untaught, most of its attention is elsewhere, and it knows none of the words.
    assert losses[1] > losses[0] + 0.3 and losses[2] > losses[1] + 2


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


def test_the_compressor_hears_the_last_question(processor, contexts):
    data = language.Talks(contexts, processor, 64, 8, 5)
    clips = [contexts.clips.clip(i) for i in range(CLIPS)]
    heard = {language.heard(clip, v).text for clip in clips for v in range(language.VARIANTS)}
    heard |= {language.pair(clip, k)[2].text for clip in clips for k in range(language.PAIRS)}
    for number in range(64):
        text = processor.tokenizer.decode(data[number]["ids"])
        assert text.split("<|question|> ")[-1].partition(" <|answer|>")[0] in heard

# SPDX-License-Identifier: Apache-2.0
"""The whole model: forward, loss, gradients, batches, dtypes, decoders, errors."""

from __future__ import annotations

import logging

import pytest
import torch
import torch.nn.functional as F
from toy import (
    GPT2,
    LLAMA,
    PROMPT,
    TIED,
    toy_config,
    toy_inputs,
    toy_model,
    toy_processor,
    toy_sound,
    toy_video,
)

from tdc import InputError
from tdc.answer import ask
from tdc.compressor.speedups import Speedups
from tdc.config import RELEASE_BEHAVIOUR
from tdc.encoder.tower_features import TowerFeatures
from tdc.model import MEDIA_INPUTS
from tdc_kernels import use_backend


def media_of(inputs) -> dict:
    return {name: inputs[name] for name in MEDIA_INPUTS if name in inputs}


@pytest.fixture(scope="module")
def pair(processor):
    """A batch of two: other lengths, shapes and questions, sound on the first only."""
    texts = [PROMPT, "<video>\nHow many dogs, and where do they all run to?"]
    videos = [toy_video(10, seed=0), toy_video(7, (48, 24), seed=1)]
    sounds = [toy_sound(4.0), False]
    both = processor(text=texts, videos=videos, audio=sounds)
    singles = [
        processor(text=texts[i], videos=[videos[i]], audio=[sounds[i]]) for i in range(len(texts))
    ]
    return both, singles


# --- forward and loss ---


@torch.no_grad()
def test_context_replaces_the_placeholder(model, processor):
    inputs = toy_inputs(processor)
    features = model.encode_video(**media_of(inputs))
    context = model.build_context(features, inputs["question_ids"], inputs["question_mask"])
    prompt = model.prepare_prompt(**inputs)
    place = (inputs["input_ids"][0] == model.config.media_token_id).nonzero().item()
    length = len(context.tokens[0])
    # 4 scenes of 20 visual (+ 6 audio in the 4 s with sound) and a separator; 3 + 1 per other frame
    heard = sum(features.audio_lengths[a] for a in context.plan.anchors.tolist())
    assert heard and length == 4 * (20 + 1) + heard + 6 * (3 + 1)
    torch.testing.assert_close(
        prompt.inputs_embeds[0, place : place + length], context.tokens[0], rtol=0, atol=0
    )
    embeddings = model.get_input_embeddings()(inputs["input_ids"][0, place + 1 :])
    assert torch.equal(prompt.inputs_embeds[0, place + length :], embeddings)
    logits = model(**inputs).logits
    assert logits.shape == (1, prompt.inputs_embeds.shape[1], 264)
    assert torch.equal(logits, model(inputs_embeds=prompt.inputs_embeds).logits)


def test_loss_is_the_cross_entropy_of_the_next_token(model, processor):
    inputs = toy_inputs(processor)
    labels = inputs["input_ids"].clone()
    labels[:, :8] = -100
    with torch.no_grad():
        output = model(**inputs, labels=labels)
        logits = output.logits[0].double()
    text = inputs["input_ids"][0]
    place = (text == model.config.media_token_id).nonzero().item()
    length = len(logits) - len(text) + 1
    target = torch.cat([labels[0, :place], torch.full((length,), -100), labels[0, place + 1 :]])
    scored = [i for i in range(1, len(target)) if target[i] != -100]
    assert len(scored) == len(text) - 8
    expected = torch.stack([F.cross_entropy(logits[i - 1], target[i]) for i in scored]).mean()
    torch.testing.assert_close(output.loss.double(), expected, rtol=1e-5, atol=0)


def test_gradients_reach_every_part(processor):
    model = toy_model().train()
    inputs = toy_inputs(processor)
    model(**inputs, labels=inputs["input_ids"].clamp(min=0)).loss.backward()
    parts = {
        "video_encoder.siglip.",
        "video_encoder.dinov2.",
        "video_encoder.beats.",
        "video_encoder.connector.",
        "compressor.qformer.",
        "compressor.query_proj.",
        "compressor.output_proj.",
        "compressor.audio_proj.",
        "compressor.separator",
        "language_model.",
    }
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert all(grad.isfinite().all() for grad in grads.values())
    for part in parts:
        reached = [n for n, g in grads.items() if n.startswith(part) and g.abs().max() > 0]
        assert reached, part
    frozen = [n for n in dict(model.named_parameters()) if n not in grads]
    # SigLIP's second half of the position table etc. all take part; only DINOv2's mask token and
    # BEATs' gates of later layers could not.
    assert all("mask_token" in n or "beats" in n for n in frozen), frozen


def test_gradient_checkpointing_changes_nothing(processor):
    model, inputs = toy_model().train(), toy_inputs(processor)
    labels = inputs["input_ids"].clamp(min=0)

    def gradient() -> torch.Tensor:
        model.zero_grad()
        model(**inputs, labels=labels, use_cache=False).loss.backward()
        return model.compressor.output_proj.weight.grad.clone()

    plain = gradient()
    model.gradient_checkpointing_enable()
    torch.testing.assert_close(gradient(), plain, rtol=1e-4, atol=1e-7)


# --- batches ---


@torch.no_grad()
def test_batch_equals_singles(model, pair):
    both, singles = pair
    output = model(**both)
    mask = model.prepare_prompt(**both).attention_mask
    for row, inputs in enumerate(singles):
        alone = model(**inputs).logits[0]
        torch.testing.assert_close(output.logits[row][mask[row]], alone, rtol=0, atol=2e-4)


def test_generated_batch_equals_singles(model, pair):
    both, singles = pair
    options = {"do_sample": False, "max_new_tokens": 8, "eos_token_id": None}
    answers = model.generate(**both, **options)
    assert answers.shape == (2, 8)
    for row, inputs in enumerate(singles):
        assert torch.equal(answers[row], model.generate(**inputs, **options)[0])


@torch.no_grad()
def test_one_encoding_serves_many_questions(model, processor):
    texts = [PROMPT, "<video>\nIs there a sound?"]
    runs = [toy_inputs(processor, text) for text in texts]
    features = model.encode_video(**media_of(runs[0]))
    for inputs in runs:
        text = {k: x for k, x in inputs.items() if k not in MEDIA_INPUTS}
        again = model(**text, features=features).logits
        torch.testing.assert_close(again, model(**inputs).logits, rtol=0, atol=0)
    answers = [ask(model, processor, features, [q], max_new_tokens=4) for q in ("a?", "b?")]
    assert all(isinstance(answer[0], str) for answer in answers)


@torch.no_grad()
@pytest.mark.parametrize("backend", ["reference", None])
def test_answers_are_the_same_with_and_without_speedups(model, processor, backend, monkeypatch):
    """Token for token in fp32."""
    inputs, answers = toy_inputs(processor), []
    for speedups in (Speedups.none(), Speedups(), Speedups(joint_keys_values=True)):
        monkeypatch.setattr(model.compressor, "speedups", speedups)
        with use_backend(backend or "auto"):
            answers.append(model.generate(**inputs, max_new_tokens=12, do_sample=False))
    assert answers[0].shape[1] > 1
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])


@torch.no_grad()
def test_images_videos_and_text_in_one_batch(model, processor):
    square, wide = toy_video(1, seed=5)[0], toy_video(1, (48, 24), seed=6)[0]
    texts = ["<image>\nand <video>\nand <image>\n?", "<image>\nwhat?", "no picture at all"]
    images = [square, wide, square]
    videos = [toy_video(6)]
    both = processor(text=texts, images=images, videos=videos, audio=[False])
    prompt = model.prepare_prompt(**both)
    features = model.encode_video(**media_of(both))
    assert features.kinds == ("image", "video", "image", "image")
    assert [len(image) for image in features.images] == [20, 10, 20]
    only_video = processor(text="<video>", videos=videos, audio=[False])
    alone = model.encode_video(**media_of(only_video)).segmentation
    torch.testing.assert_close(features.segmentation.similarity, alone.similarity)
    parts = [
        processor(text=texts[0], images=images[:2], videos=videos, audio=[False]),
        processor(text=texts[1], images=images[2:]),
        processor(text=texts[2]),
    ]
    for row, inputs in enumerate(parts):
        alone = model.prepare_prompt(**inputs).inputs_embeds[0]
        together = prompt.inputs_embeds[row][prompt.attention_mask[row]]
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


@torch.no_grad()
def test_text_alone(model, processor):
    inputs = processor(text="Just a question.")
    assert not media_of(inputs)
    logits = model(**inputs).logits
    expected = model.language_model(input_ids=inputs["input_ids"]).logits
    torch.testing.assert_close(logits, expected)
    assert model.generate(**inputs, max_new_tokens=3, eos_token_id=None).shape == (1, 3)


# --- room and trimming ---


@pytest.mark.parametrize("trim", ["frames", "window_tail"])
@torch.no_grad()
def test_trimming_is_said_and_fits(trim, caplog):
    config = toy_config(max_context_length=120, trim=trim)
    model, processor = toy_model(config), toy_processor(config)
    inputs = processor(text=PROMPT, videos=[toy_video(12)], audio=[False], max_frames=12)
    with caplog.at_level(logging.WARNING, "tdc_kernels"):
        prompt = model.prepare_prompt(**inputs)
    text = inputs["input_ids"].shape[1] - 1
    room = 120 - config.answer_reserve - text
    full = 4 * 21 + 8 * 4
    kept = prompt.inputs_embeds.shape[1] - text
    assert 0 < kept <= room < full
    (record,) = caplog.records
    assert f"{full - kept} of {full} context tokens were cut" in record.getMessage()


@torch.no_grad()
def test_two_videos_of_a_prompt_share_its_room(caplog):
    config = toy_config(max_context_length=200)
    model, processor = toy_model(config), toy_processor(config)
    inputs = processor(
        text="<video>\n<video>\nWhich?",
        videos=[toy_video(12, seed=1), toy_video(12, seed=2)],
        audio=[False, False],
        max_frames=12,
    )
    with caplog.at_level(logging.WARNING, "tdc_kernels"):
        prompt = model.prepare_prompt(**inputs)
    assert prompt.inputs_embeds.shape[1] <= 200 - config.answer_reserve
    assert len(caplog.records) == 2


def test_a_question_longer_than_the_context_is_refused(model, processor):
    inputs = processor(
        text="<video>\n" + "why? " * 140, videos=[toy_video(4)], audio=[False], max_frames=4
    )
    for call in (model.forward, model.generate):
        with pytest.raises(InputError, match=r"the question has 701 tokens.* 700 leaves 684"):
            call(**inputs)


# --- decoders, dtypes, configurations ---


@pytest.mark.parametrize("text", [LLAMA, TIED, GPT2], ids=["llama", "tied qwen2", "gpt2"])
def test_other_decoders(text, processor):
    model = toy_model(toy_config(text_config=text))
    assert type(model.language_model).__name__.lower().startswith(text["model_type"])
    inputs = toy_inputs(processor)
    labels = inputs["input_ids"].clamp(min=0)
    output = model(**inputs, labels=labels)
    assert output.logits.isfinite().all() and output.loss > 0
    output.loss.backward()
    assert model.compressor.output_proj.weight.grad.abs().max() > 0
    assert model.generate(**inputs, max_new_tokens=3, eos_token_id=None).shape == (1, 3)
    tied = model.config.tie_word_embeddings
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision(model, processor, dtype, tmp_path):
    model.save_pretrained(tmp_path)
    half = type(model).from_pretrained(tmp_path, dtype=dtype)
    assert {p.dtype for p in half.parameters()} == {dtype}
    inputs = toy_inputs(processor)
    logits, expected = half(**inputs).logits, model(**inputs).logits
    assert logits.dtype == dtype and logits.isfinite().all()
    # Cuts may differ where similarities are close; the video here has clear ones.
    relative = (logits.float() - expected).norm() / expected.norm()
    assert relative < (0.1 if dtype == torch.bfloat16 else 0.02)
    assert half.generate(**inputs, max_new_tokens=3, eos_token_id=None).shape == (1, 3)


@pytest.mark.parametrize(
    "changes",
    [
        {"query_type": "learned"},
        {"static_frames": False},
        {"question_in_compressor": False},
        {"frame_positions": "sinusoidal"},
        {"scene_window": 2},
        {"audio_config": None},
        {"similarity_threshold": -2.0},
        RELEASE_BEHAVIOUR,
    ],
    ids=lambda changes: ",".join(changes) if len(changes) < 3 else "release",
)
@torch.no_grad()
def test_every_option_changes_the_answer(changes, model, processor):
    config = toy_config(**changes)
    other = toy_model(config)
    other.load_state_dict(model.state_dict(), strict=False)
    inputs = toy_inputs(toy_processor(config), size=(48, 24), frames=13)
    base = model(**toy_inputs(processor, size=(48, 24), frames=13)).logits
    changed = other(**inputs).logits
    assert changed.isfinite().all()
    assert changed.shape != base.shape or (changed - base).abs().max() > 1e-4


@torch.no_grad()
def test_nothing_reads_memory_that_nobody_wrote(processor):
    """Built and run with NaN in every fresh tensor (tests/conftest.py)."""
    assert torch.empty(3).isnan().all()
    model = toy_model()
    assert all(p.isfinite().all() for p in model.parameters())
    assert all(b.isfinite().all() for b in model.buffers() if b.is_floating_point())
    assert model(**toy_inputs(processor)).logits.isfinite().all()


# --- what is said when it cannot work ---


def test_without_towers_pixels_are_refused_and_features_are_not(processor):
    bare = toy_model(
        toy_config(
            siglip_config=None, dinov2_config=None, siglip_hidden_size=16, dinov2_hidden_size=24
        )
    )
    with pytest.raises(InputError, match="saved without vision towers"):
        bare(**toy_inputs(processor))
    towers = TowerFeatures(torch.randn(4, 64, 16), torch.randn(4, 64, 24))
    features = bare.video_encoder.connect([towers])
    text = processor.encode_prompts([PROMPT])
    assert bare(**text, features=features).logits.isfinite().all()


def test_missing_inputs_and_media_are_named(model, processor):
    for call in (model.forward, model.generate):
        with pytest.raises(ValueError, match="needs input_ids or inputs_embeds, got neither"):
            call()
    text = processor.encode_prompts([PROMPT])
    with pytest.raises(ValueError, match="1 media placeholders, but 0 videos and images came"):
        model(**text)


def test_sound_without_an_encoder_is_refused(processor):
    deaf = toy_model(toy_config(audio_config=None))
    with pytest.raises(InputError, match="no audio encoder"):
        deaf.video_encoder.encode_audio([torch.zeros(16000)], [[0.0]])

# SPDX-License-Identifier: Apache-2.0
"""Context tokens by a frame's change: the allocation, the compressor, the whole model."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from releases import DATA, released_state
from test_compressor import K, compressor, frame_tokens, plan_of, ragged
from test_speedups import NAMES, question, unprojected
from toy import PROMPT, toy_config, toy_inputs, toy_model, toy_processor, toy_video

import tdc.compressor.compressor
from tdc import TDCConfig, answer_long_video
from tdc.checkpoints.release_names import release_config
from tdc.compressor.allocation import (
    FRAMES_AT_A_TIME,
    allocate,
    context_lengths,
    entries,
    frame_changes,
    least_tokens,
    slots,
)
from tdc.compressor.cuda_graphs import BucketedGraphs
from tdc.compressor.frame_tokens import FrameTokens
from tdc.compressor.speedups import Speedups
from tdc.encoder.features import VideoFeatures
from tdc.encoder.visual_tokens import VisualTokens
from tdc.model import MEDIA_INPUTS
from tdc.processor.budget import frame_budget
from tdc_kernels import plan_context

MOST = 2 * K


# --- from changes to tokens ---


@given(
    st.lists(st.floats(-0.01, 2) | st.sampled_from([0.0, 1e-5, math.nan, math.inf]), max_size=40),
    st.integers(1, 20),
    st.integers(0, 40),
)
def test_allocation_keeps_the_budget_and_the_order(changes, average, above):
    tokens = allocate(changes, average, average + above)
    assert sum(tokens) == average * len(changes)
    assert all(least_tokens(average) <= n <= average + above for n in tokens)
    known = [(max(c, 0), n) for c, n in zip(changes, tokens, strict=True) if math.isfinite(c)]
    for (a, x), (b, y) in pairwise(sorted(known, key=lambda pair: pair[0])):
        # Within half a unit changes are equal, and of equals the earlier one may have a token more.
        assert x <= y or (b - a < 1e-4 and x == y + 1)
    assert allocate(changes, average, average) == [average] * len(changes)


def test_allocation_by_hand():
    # Weights 1, 1001, 2001, 3001 of 6004; 12 of 16 tokens to share: 0.0, 2.0, 4.0, 6.0.
    assert allocate([0.0, 0.1, 0.2, 0.3], 4, 8) == [1, 3, 5, 7]
    # The last would have 13: the others share the 8 that its 8 leave, the first ones get the rest.
    assert allocate([0.0, 0.0, 0.0, 1.0], 4, 8) == [3, 3, 2, 8]
    assert allocate([0.1, math.nan, 0.3], 4, 8) == allocate([0.1, 0.2, 0.3], 4, 8)
    assert allocate([], 4, 8) == []


@pytest.mark.parametrize("change", [0.0, 0.37, 2.0, math.nan, math.inf, -math.inf])
def test_equal_changes_are_the_fixed_number_each(change):
    for count in (1, 2, 7):
        assert allocate([change] * count, 16, 32) == [16] * count
    noise = [change + 1e-6 * i for i in range(7)]  # of half-precision tokens
    assert allocate(noise, 16, 32) == [16] * 7


@given(st.integers(1, 40), st.integers(0, 40))
def test_slots_show_every_bin_evenly(length, extra):
    bins = slots(length, length + extra)
    assert bins[:length] == list(range(length))
    counts = [bins.count(b) for b in range(length)]
    assert sum(counts) == length + extra and max(counts) - min(counts) <= 1
    assert bins[length:] == sorted(bins[length:])


# --- how far a frame is from its anchor ---


def naive_change(features: VideoFeatures, frame: int, anchor: int) -> float:
    length = features.visual_lengths[frame]
    tokens = features.visual.final()[[frame, anchor], :length]
    pooled = F.adaptive_avg_pool1d(tokens.double().transpose(1, 2), K).flatten(1)
    return 1 - float(F.cosine_similarity(*pooled, dim=0))


@pytest.mark.parametrize("make", [ragged, unprojected])
def test_changes_against_the_formula(make, monkeypatch):
    """Padding is garbage and not read; frames before the projector's last layer count as behind."""
    features = make()
    frames, anchors = torch.tensor([1, 2, 4, 8]), torch.tensor([0, 0, 3, 7])
    wanted = [naive_change(features, *pair) for pair in zip(frames, anchors, strict=True)]
    got = frame_changes(features, frames, anchors, K)
    assert got == pytest.approx(wanted, abs=1e-9) and min(got) > 0.1
    monkeypatch.setattr("tdc.compressor.allocation.FRAMES_AT_A_TIME", 2)
    assert FRAMES_AT_A_TIME > 2
    assert frame_changes(features, frames, anchors, K) == pytest.approx(got, abs=1e-12)
    features.visual.values[[2, 4]] = features.visual.values[[0, 4]]
    still = frame_changes(features, frames, anchors, K)
    assert still[1] == pytest.approx(0, abs=1e-9) and still[2:] == pytest.approx(got[2:], abs=1e-9)


@pytest.mark.parametrize("static", [True, False])
def test_lengths_of_every_video(static):
    features = ragged()
    features.visual.values[[6, 10]] = features.visual.values[[2, 9]]  # as their anchors
    plan = plan_of(features, None, static)
    lengths = context_lengths(features, plan, K, MOST)
    first = [0, 2, 7, 9, 13, 14]  # of a scene
    assert all(lengths[frame] == K for frame in first)  # read only without static frames
    assert lengths[6] == lengths[10] == least_tokens(K) < K < max(lengths[1:9]) <= MOST
    assert lengths[10] < K < max(lengths[11:13]) <= MOST
    for start, stop in pairwise(features.cu_frames):
        assert sum(lengths[start:stop]) == K * (stop - start)
    broken = features.visual.values.clone()
    broken[6, 0, 0] = math.nan
    assert sum(
        context_lengths(replace(features, visual=VisualTokens(broken)), plan, K, MOST)
    ) == sum(lengths)


# --- the compressor ---

LENGTHS = [3, 1, 3, 2, 5, 6, 1, 3, 3, 3, 2, 6, 1, 3, 3]


def ragged_plan(features, window=4, static=True, lengths=LENGTHS):
    return plan_context(
        features.segmentation.boundaries,
        features.cu_frames,
        window,
        features.static_lengths() if static else None,
        MOST,
        compressed_lengths=lengths,
    )


def naive_frame(module, features, frame, anchor, length, ids):
    """One frame's tokens: the anchor pooled to so many bins, and those again up to MOST."""
    if module.query_tokens is not None:
        source = module.query_tokens
    else:
        source = features.visual.final()[anchor, : features.visual_lengths[anchor]]
    queries = F.adaptive_avg_pool1d(source.T, length).T
    if module.query_proj is not None:
        queries = module.query_proj(queries)
    queries = queries[slots(length, MOST)]
    tokens = FrameTokens(frame_tokens(module, features, frame)[None])
    hidden = module.qformer(queries[None], tokens, question_ids=ids)[0]
    return F.normalize(module.output_proj(hidden[:length]), dim=-1)


def check_frames(module, features, plan, packed, asked):
    videos = torch.bucketize(plan.dynamic, torch.tensor(features.cu_frames[1:]), right=True)
    rows = int(plan.cu_static[-1])
    for m, frame in enumerate(plan.dynamic.tolist()):
        ids = asked["question_ids"][videos[m]][asked["question_mask"][videos[m]]][None]
        anchor, length = int(plan.anchors[plan.dynamic_anchor[m]]), LENGTHS[frame]
        wanted = naive_frame(module, features, frame, anchor, length, ids)
        position = plan.position[rows + m * MOST : rows + (m + 1) * MOST]
        assert (position >= 0).tolist() == [True] * length + [False] * (MOST - length)
        torch.testing.assert_close(packed[position[:length]], wanted, rtol=0, atol=1e-11)


@torch.no_grad()
@pytest.mark.parametrize("query_type", ["pooled", "learned"])
@pytest.mark.parametrize("static", [True, False])
def test_one_call_equals_frame_by_frame(query_type, static):
    module, features, asked = compressor(query_type).eval(), ragged(), question(True)
    plan = ragged_plan(features, static=static)
    packed, cu = module(features, plan, **asked)
    assert cu.tolist() == plan.cu_context.tolist() and len(packed) == plan.total_tokens
    check_frames(module, features, plan, packed, asked)


@torch.no_grad()
@pytest.mark.parametrize("name", [None, *NAMES])
def test_speedups_change_nothing(name, monkeypatch):
    monkeypatch.setattr(
        tdc.compressor.compressor, "GRAPHS_ON", "cpu"
    )  # a replay calls the function again
    monkeypatch.setattr(BucketedGraphs.__init__, "__defaults__", (replay,))
    module, features, asked = compressor().eval(), unprojected(), question(True)
    plan = ragged_plan(features)
    module.speedups = Speedups.none()
    wanted = module(features, plan, **asked)[0]
    module.speedups = replace(Speedups(), **({name: not getattr(Speedups(), name)} if name else {}))
    for _ in range(2):  # the second call takes what the first has kept
        torch.testing.assert_close(module(features, plan, **asked)[0], wanted, rtol=0, atol=1e-11)
    other = [n % MOST + 1 for n in LENGTHS]
    fresh = module(features, ragged_plan(features, lengths=other), **asked)[0]
    module.cache.clear()
    again = module(features, ragged_plan(features, lengths=other), **asked)[0]
    torch.testing.assert_close(fresh, again, rtol=0, atol=1e-11)


def replay(function, inputs):
    out = function(inputs)
    return lambda: out.copy_(function(inputs)), out


@torch.no_grad()
@pytest.mark.parametrize("query_type", ["pooled", "learned"])
def test_equal_lengths_are_the_fixed_context(query_type):
    """Twice every query is every query; a question counts for less beside them, hence without."""
    module, features = compressor(query_type).eval(), ragged()
    fixed, _ = module(features, plan_of(features, 4, True))
    adaptive, _ = module(features, ragged_plan(features, lengths=[K] * 15))
    torch.testing.assert_close(adaptive, fixed, rtol=0, atol=1e-11)


@torch.no_grad()
def test_one_qformer_call_and_one_entry_per_anchor_and_length(monkeypatch):
    module, features, calls = compressor().eval(), ragged(), []
    plan = ragged_plan(features, None)
    rows, lengths, group = entries(plan)
    pairs = list(zip(rows.tolist(), lengths, strict=True))
    own = zip(plan.dynamic_anchor.tolist(), plan.compressed_lengths.tolist(), strict=True)
    assert [pairs[g] for g in group.tolist()] == list(own) and len(set(pairs)) == len(pairs)
    forward = module.qformer.forward
    monkeypatch.setattr(
        module.qformer, "forward", lambda **k: calls.append(k["queries"].shape[:2]) or forward(**k)
    )
    module(features, plan)
    assert calls == [(len(pairs), MOST)]


@pytest.mark.parametrize("query_type", ["pooled", "learned"])
def test_gradients_reach_every_parameter(query_type):
    module, features = compressor(query_type), ragged()
    packed, _ = module(features, ragged_plan(features), torch.randint(5, 80, (3, 7)))
    (packed * torch.randn_like(packed)).sum().backward()
    unseen = [n for n, _ in module.named_parameters() if n.endswith("key.bias")]
    unseen += [n for n, _ in module.named_parameters() if ".layers.2.ffn_text." in n]
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert (parameter.grad.abs().max() > 1e-9) == (name not in unseen), name


# --- the whole model ---


@pytest.fixture(scope="module")
def adaptive():
    config = toy_config(context_allocation="adaptive", num_context_tokens=4, num_scenes=3)
    return toy_model(config), toy_processor(config)


def media_of(inputs) -> dict:
    return {name: inputs[name] for name in MEDIA_INPUTS if name in inputs}


def fixed_plan(config, features, room=None):
    static = features.static_lengths() if config.static_frames else None
    cuts = features.segmentation.boundaries
    return plan_context(
        cuts, features.cu_frames, config.scene_window, static, config.num_context_tokens, room
    )


@torch.no_grad()
def test_contexts_are_as_long_as_fixed_ones(adaptive):
    model, processor = adaptive
    texts, videos = [PROMPT, "<video>\nWhere?"], [toy_video(14), toy_video(9, (48, 24), 1)]
    both = processor(text=texts, videos=videos, audio=[False, False])
    features = model.encode_video(**media_of(both))
    context = model.build_context(features, both["question_ids"], both["question_mask"])
    plan = context.plan
    assert plan.cu_context.tolist() == fixed_plan(model.config, features).cu_context.tolist()
    lengths = plan.compressed_lengths
    assert plan.num_queries == 8 and 1 <= lengths.min() < 4 < lengths.max() <= 8
    again = model.build_context(features, both["question_ids"], both["question_mask"])
    assert again.plan.compressed_lengths.tolist() == lengths.tolist()
    for row in range(2):  # a video of a batch gets what it gets alone
        inputs = processor(text=texts[row], videos=[videos[row]], audio=[False])
        alone = model.build_context(
            model.encode_video(**media_of(inputs)), inputs["question_ids"], inputs["question_mask"]
        )
        torch.testing.assert_close(context.tokens[row], alone.tokens[0], rtol=0, atol=1e-5)


@torch.no_grad()
def test_context_fits_the_budget_and_is_trimmed_beyond_it(adaptive):
    model, processor = adaptive
    inputs = toy_inputs(processor, frames=14, sound=0)
    features = model.encode_video(**media_of(inputs))
    full = fixed_plan(model.config, features).total_tokens
    plan = model.build_context(features, max_tokens=full).plan
    assert plan.trimmed.tolist() == [0]
    shorter = model.build_context(features, max_tokens=full - 20)
    assert full - 20 - 8 <= len(shorter.tokens[0]) <= full - 20
    # Frames that stay have the tokens that they have in the whole context.
    before = dict(zip(plan.dynamic.tolist(), plan.compressed_lengths.tolist(), strict=True))
    kept = shorter.plan.dynamic.tolist()
    assert 0 < len(kept) < len(before)
    assert shorter.plan.compressed_lengths.tolist() == [before[frame] for frame in kept]
    fixed = toy_config(num_context_tokens=4, num_scenes=3)
    assert frame_budget(model.config, 40, 20) == frame_budget(fixed, 40, 20)


@torch.no_grad()
def test_generate_images_and_lvcot(adaptive):
    model, processor = adaptive
    images, video = [toy_video(1, seed=5)[0]], [toy_video(9)]
    mixed = processor(text="<image>\nand <video>\n?", images=images, videos=video, audio=[False])
    assert model.generate(**mixed, max_new_tokens=3, eos_token_id=None).shape == (1, 3)
    tokens = model.build_context(model.encode_video(**media_of(mixed))).tokens
    picture = processor(text="<image>\n?", images=images)
    (alone,) = model.build_context(model.encode_video(**media_of(picture))).tokens
    torch.testing.assert_close(tokens[0], alone, rtol=0, atol=1e-5)
    options = {"do_sample": False, "max_new_tokens": 4, "segment_tokens": 3}
    answer = answer_long_video(model, processor, toy_video(24), "What moves?", 2, **options)
    assert len(answer.segments) == 2 and answer.answer


def test_training_step(adaptive):
    model, processor = adaptive
    inputs = toy_inputs(processor, frames=10)
    model.train()
    try:
        loss = model(**inputs, labels=inputs["input_ids"]).loss
        loss.backward()
        weight = model.compressor.query_proj.weight
        assert weight.grad.isfinite().all() and weight.grad.any()
    finally:
        model.zero_grad()
        model.eval()


@torch.no_grad()
def test_fixed_is_the_default_and_plans_nothing_else(model, processor):
    inputs = toy_inputs(processor)
    features = model.encode_video(**media_of(inputs))
    plan = model.build_context(features).plan
    assert plan.compressed_lengths is None and plan.num_queries == 3
    assert torch.equal(plan.source, fixed_plan(model.config, features).source)


# --- configuration ---


def test_configuration(tmp_path):
    assert TDCConfig().context_allocation == "fixed" and TDCConfig().most_context_tokens == 16
    config = toy_config(context_allocation="adaptive")
    assert config.most_context_tokens == 6
    config = toy_config(context_allocation="adaptive", max_context_tokens_per_frame=5)
    config.save_pretrained(tmp_path)
    loaded = TDCConfig.from_pretrained(tmp_path)
    assert (loaded.context_allocation, loaded.most_context_tokens) == ("adaptive", 5)
    with pytest.raises(ValueError, match="max_context_tokens_per_frame is 2; expected None or at"):
        toy_config(max_context_tokens_per_frame=2)


def test_converted_models_stay_fixed():
    shapes = {name: tuple(tensor.shape) for name, tensor in released_state().items()}
    bert = json.loads((DATA / "bert_config.json").read_text())
    config = release_config(json.loads((DATA / "config_qwen.json").read_text()), shapes, bert)
    assert config.context_allocation == "fixed"
    assert config.most_context_tokens == config.num_context_tokens

# SPDX-License-Identifier: Apache-2.0
"""The compressor against its formula, one frame at a time (paper, section 3.2)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from toy import QFORMER, cuts_at
from transformers import BertConfig

from tdc.compressor.compressor import Compressor
from tdc.compressor.frame_tokens import FrameTokens
from tdc.encoder.features import VideoFeatures
from tdc.encoder.visual_tokens import VisualTokens
from tdc_kernels import plan_context

D, K, AUDIO_WIDTH, AUDIO = 20, 3, 12, 4
# Three videos: frames, visual tokens of a frame, frames with sound, cuts.
VIDEOS = ((9, 10, 6, [2, 7]), (5, 6, 0, [4]), (1, 8, 1, []))


def compressor(query_type: str = "pooled", audio: bool = True) -> Compressor:
    width = AUDIO_WIDTH if audio else None
    module = Compressor(BertConfig(**QFORMER), D, K, query_type, width).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.4 * torch.randn_like(parameter))
    return module


def ragged(audio: bool = True) -> VideoFeatures:
    """A batch whose unused slots hold garbage: nothing may read them."""
    frames = sum(video[0] for video in VIDEOS)
    longest = max(video[1] for video in VIDEOS)
    visual = torch.full((frames, longest, D), 1e3).double()
    sound = torch.full((frames, AUDIO, AUDIO_WIDTH), 1e3).double()
    lengths, audio_lengths, cu = [], [], [0]
    for count, tokens, heard, _ in VIDEOS:
        visual[cu[-1] : cu[-1] + count, :tokens] = torch.randn(count, tokens, D).double()
        sound[cu[-1] : cu[-1] + heard] = torch.randn(heard, AUDIO, AUDIO_WIDTH).double()
        lengths += [tokens] * count
        audio_lengths += [AUDIO] * heard + [0] * (count - heard)
        cu.append(cu[-1] + count)
    return VideoFeatures(
        visual=VisualTokens(visual),
        visual_lengths=tuple(lengths),
        segmentation=cuts_at([video[3] for video in VIDEOS], cu),
        times=tuple(map(float, range(frames))),
        audio=sound if audio else None,
        audio_lengths=tuple(audio_lengths) if audio else (),
        kinds=("video",) * len(VIDEOS),
    )


def plan_of(features: VideoFeatures, window: int | None, static: bool):
    return plan_context(
        features.segmentation.boundaries,
        features.cu_frames,
        window,
        features.static_lengths() if static else None,
        K,
    )


def naive(
    module: Compressor,
    features: VideoFeatures,
    window: int | None,
    static: bool,
    question_ids: Tensor | None,
    question_mask: Tensor | None,
) -> list[Tensor]:
    """The formula, frame by frame, with concatenated tokens and no batch."""
    videos = []
    for video, (count, *_, cuts) in enumerate(VIDEOS):
        ids = None
        if question_ids is not None:
            ids = question_ids[video : video + 1]
            ids = ids if question_mask is None else ids[:, question_mask[video]]
        pieces: list[Tensor] = []
        for start, stop in zip([0, *cuts], [*cuts, count], strict=True):
            for anchor in range(start, stop, window or count):
                last = min(stop, anchor + (window or count))
                pieces += naive_window(module, features, video, (anchor, last), static, ids)
        videos.append(torch.cat(pieces))
    return videos


def naive_window(module, features, video, span, static, ids) -> list[Tensor]:
    first = features.cu_frames[video]
    anchor = first + span[0]
    whole = frame_tokens(module, features, anchor)
    if module.query_tokens is not None:
        queries = module.query_tokens
    else:
        n = features.visual_lengths[anchor]
        pooled = F.adaptive_avg_pool1d(features.visual.values[anchor, :n].T, K).T
        queries = module.query_proj(pooled)
    pieces = [whole, module.separator[None]] if static else []
    for frame in range(anchor + static, first + span[1]):
        tokens = frame_tokens(module, features, frame)
        hidden = module.qformer(queries[None], FrameTokens(tokens[None]), question_ids=ids)[0]
        compressed = F.normalize(module.output_proj(hidden), dim=-1)
        pieces += [compressed, module.separator[None]]
    return pieces


def frame_tokens(module: Compressor, features: VideoFeatures, frame: int) -> Tensor:
    visual = features.visual.values[frame, : features.visual_lengths[frame]]
    if features.audio is None:
        return visual
    audio = features.audio[frame, : features.audio_lengths[frame]]
    return torch.cat([visual, module.audio_proj(audio)])


@torch.no_grad()
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("query_type", ["pooled", "learned"])
@pytest.mark.parametrize("question", ["none", "same length", "padded"])
def test_one_call_equals_the_loop(window, static, query_type, question):
    module, features = compressor(query_type), ragged()
    ids = None if question == "none" else torch.randint(5, 80, (3, 7))
    mask = None
    if question == "padded":
        mask = torch.arange(7) < torch.tensor([7, 3, 5])[:, None]
    expected = naive(module, features, window, static, ids, mask)
    packed, cu = module(features, plan_of(features, window, static), ids, mask)
    assert cu.tolist() == torch.tensor([0, *map(len, expected)]).cumsum(0).tolist()
    torch.testing.assert_close(packed, torch.cat(expected), rtol=0, atol=1e-11)


@torch.no_grad()
def test_all_dynamic_frames_are_one_qformer_call(monkeypatch):
    module, features, calls = compressor(), ragged(), []
    forward = module.qformer.forward
    monkeypatch.setattr(
        module.qformer,
        "forward",
        lambda *a, **k: calls.append(len(k["group"])) or forward(*a, **k),
    )
    module(features, plan_of(features, None, True))
    assert calls == [(9 - 3) + (5 - 2)]


@torch.no_grad()
def test_silence_is_masked_not_heard():
    """A video whose frames all have 0 audio tokens is a video without sound."""
    module, features = compressor(), ragged()
    silent = VideoFeatures(**{**vars(features), "audio_lengths": (0,) * 15})
    absent = ragged(audio=False)
    absent = VideoFeatures(**{**vars(absent), "visual": features.visual})
    for static in (True, False):
        a, cu_a = module(silent, plan_of(silent, None, static))
        b, cu_b = module(absent, plan_of(absent, None, static))
        heard, _ = module(features, plan_of(features, None, static))
        assert cu_a.tolist() == cu_b.tolist()
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)
        assert heard.shape != a.shape or (heard - a).abs().max() > 1e-3


@torch.no_grad()
def test_compressed_tokens_have_unit_length_and_static_ones_are_untouched():
    module, features = compressor(), ragged()
    plan = plan_of(features, None, True)
    packed, _ = module(features, plan)
    kinds = plan.kinds
    norms = packed[kinds == 1].norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones_like(norms))
    first_static = torch.cat([features.visual.values[0], module.project_audio(features)[0]])
    assert torch.equal(packed[: 10 + AUDIO], first_static)
    separators = packed[kinds == 2]
    assert torch.equal(separators, module.separator.expand_as(separators))


def test_one_frame_needs_no_qformer():
    module = compressor(audio=False)
    visual = VisualTokens(torch.randn(1, 5, D).double())
    features = VideoFeatures(visual, (5,), cuts_at([[]], [0, 1]), (0.0,), kinds=("video",))
    packed, cu = module(features, plan_of(features, None, True))
    assert cu.tolist() == [0, 6]
    torch.testing.assert_close(packed, torch.cat([visual.values[0], module.separator[None]]))


@pytest.mark.parametrize("query_type", ["pooled", "learned"])
def test_gradients_reach_every_parameter(query_type):
    module, features = compressor(query_type), ragged()
    visual = features.visual.values.clone().requires_grad_()
    features = VideoFeatures(**{**vars(features), "visual": VisualTokens(visual)})
    packed, _ = module(features, plan_of(features, None, True), torch.randint(5, 80, (3, 7)))
    (packed * torch.randn_like(packed)).sum().backward()
    # A bias of the keys shifts all scores of a query alike: the softmax does not see it. The last
    # layer's question tokens go nowhere.
    unseen = [n for n, _ in module.named_parameters() if n.endswith("key.bias")]
    unseen += [n for n, _ in module.named_parameters() if ".layers.2.ffn_text." in n]
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert (parameter.grad.abs().max() > 1e-9) == (name not in unseen), name
    used = torch.zeros(len(visual), visual.shape[1], dtype=torch.bool)
    for frame, length in enumerate(features.visual_lengths):
        used[frame, :length] = True
    assert torch.equal(visual.grad.abs().sum(-1) > 0, used)


def test_initial_separator_and_queries_are_not_zero():
    module = Compressor(BertConfig(**QFORMER), D, K, "learned")
    assert module.separator.std() > 0.05 and module.query_tokens.std() > 0.005
    with torch.no_grad():
        module.separator.zero_()
    module.reset_parameters()
    assert module.separator.any()

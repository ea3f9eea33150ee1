# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tdc_kernels import reduce_frames
from tdc_kernels.nn import FrameReducer


def by_hand(features: torch.Tensor, threshold: float, window: int, rule: str) -> list[int]:
    """The definition, frame by frame, in fp64."""
    x, kept = F.normalize(features.double().flatten(1), dim=1), []
    for frame in range(len(x)):
        start = frame // window * window
        others = range(start, min(start + window, len(x)))
        if rule == "window":
            stays = frame == start + len(others) // 2
            redundancy = sum(float(x[frame] @ x[j]) for j in others) / len(others)
        else:
            stays = frame == start
            redundancy = 0.0 if stays else float(x[frame] @ x[frame - 1])
        if stays or redundancy < threshold:
            kept.append(frame)
    return kept


def video(frames: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Scenes of up to 5 frames that are more or less alike."""
    scene = torch.randn(frames // 5 + 1, 4, 6).repeat_interleave(5, 0)[:frames]
    return (scene + torch.rand(frames, 1, 1) * torch.randn(frames, 4, 6)).to(dtype)


@pytest.mark.parametrize("rule", ["window", "previous"])
@pytest.mark.parametrize("frames", [0, 1, 2, 7, 8, 9, 40])
@pytest.mark.parametrize("window", [1, 3, 8, 100])
@pytest.mark.parametrize("threshold", [-2, 0.5, 0.83, 1.1])
def test_against_the_definition(rule, frames, window, threshold):
    features = video(frames)
    kept = reduce_frames(features, threshold, window=window, rule=rule)
    assert kept.dtype == torch.int64
    assert kept.tolist() == by_hand(features, threshold, window, rule)
    if threshold > 1:
        assert kept.tolist() == list(range(frames))
    if threshold < -1:
        assert len(kept) == -(-frames // window)


@pytest.mark.parametrize("rule", ["window", "previous"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes_and_strides(rule, dtype):
    features = video(20, dtype)
    wanted = by_hand(features, 0.7, 8, rule)
    assert reduce_frames(features, 0.7, window=8, rule=rule).tolist() == wanted
    turned = features.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert reduce_frames(turned, 0.7, window=8, rule=rule).tolist() == wanted
    before = features.clone()
    reduce_frames(features, 0.7, rule=rule)
    assert torch.equal(features, before)  # LongVU's own code normalises in place


@pytest.mark.parametrize("rule", ["window", "previous"])
def test_faint_features_are_as_alike(rule):
    features = video(20)
    wanted = by_hand(features, 0.7, 8, rule)
    assert reduce_frames(features * 2e-6, 0.7, window=8, rule=rule).tolist() == wanted


def test_at_most():
    features = torch.randn(30, 50)
    assert reduce_frames(features, 1.1, max_frames=30).tolist() == list(range(30))
    assert reduce_frames(features, 1.1, max_frames=8).tolist() == [30 * i // 8 for i in range(8)]
    assert reduce_frames(features, 1.1, max_frames=1).tolist() == [0]


def test_frames_of_nothing_and_of_nan():
    features = torch.randn(4, 8)
    features[1] = 0
    assert reduce_frames(features, 0.9).tolist() == [0, 1, 2, 3]  # zeros are like nothing
    features = torch.randn(6, 800)
    features[1] = float("nan")
    assert reduce_frames(features, window=3).tolist() == [1, 3, 4, 5]
    assert reduce_frames(features, window=3, rule="previous").tolist() == [0, 3, 4, 5]


def test_the_layer():
    features = video(40).requires_grad_()
    layer = FrameReducer(0.7, 8, max_frames=9)
    frames, index = layer(features)
    assert torch.equal(index, reduce_frames(features, 0.7, window=8, max_frames=9))
    assert torch.equal(frames, features[index])
    frames.sum().backward()
    assert torch.equal(features.grad.flatten(1).any(1).nonzero().flatten(), index)
    assert repr(layer) == "FrameReducer(threshold=0.7, window=8, rule='window', max_frames=9)"


def test_arguments():
    x = torch.randn(3, 2)
    for options, error, text in (
        ({"threshold": None}, TypeError, "threshold: expected a number, got None"),
        ({"threshold": "0.8"}, TypeError, "threshold: expected a number or None, got str '0.8'"),
        ({"window": 0}, ValueError, "window: expected an integer >= 1, got 0"),
        ({"rule": "first"}, ValueError, "rule: expected one of 'window', 'previous', got 'first'"),
        ({"max_frames": 0}, ValueError, "max_frames: expected an integer >= 1, got 0"),
    ):
        with pytest.raises(error) as raised:
            reduce_frames(x, **options)
        assert str(raised.value) == text
    with pytest.raises(TypeError, match="features: expected a floating tensor"):
        reduce_frames(torch.ones(3, 2, dtype=torch.long))

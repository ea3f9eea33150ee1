# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from targets import dtypes, targets

from tdc_kernels import frame_similarity, registry, scene_boundaries, segment_scenes


@targets("segment_scenes")
@pytest.mark.parametrize("cu", [None, [0, 0, 12, 13, 30]])
def test_is_both(target, cu):
    features = torch.randn(30, 4, 5, device=target.device)
    cu_frames = None if cu is None else torch.tensor(cu, device=target.device)
    boundaries, similarity = segment_scenes(features, 5, cu_frames, 0.5, backend=target.backend)
    torch.testing.assert_close(similarity, frame_similarity(features, cu_frames))
    wanted = scene_boundaries(similarity, 5, cu_frames, 0.5, backend="reference")
    assert torch.equal(boundaries, wanted)


@targets("segment_scenes")
@dtypes
@pytest.mark.parametrize("cu", [None, [0, 0, 7, 8, 19, 19]])
@pytest.mark.parametrize("width", [5, 5000])
def test_same_bits_as_frame_similarity(target, dtype, cu, width):
    """The sums as well: the gradient is computed from them."""
    features = torch.randn(19, width, device=target.device).to(dtype)
    cu_frames = None if cu is None else torch.tensor(cu, device=target.device, dtype=torch.int32)
    both = registry.entry("segment_scenes", target.backend).handle
    half = registry.entry("frame_similarity", target.backend).handle
    similarity, sums, _ = both(features, 3, cu_frames, None)
    for got, wanted in zip((similarity, sums), half(features, cu_frames), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=0)


@targets("segment_scenes", slow="triton")
@settings(max_examples=25)
@given(
    lengths=st.lists(st.sampled_from([0, 0, 1, 2, 3, 17]), max_size=12),
    num_boundaries=st.sampled_from([0, 1, 4, 70]),
)
def test_many_short_videos(target, lengths, num_boundaries):
    """More videos than frames, several that end in one block of threads, empty ones anywhere."""
    cu = torch.tensor([0, *lengths], device=target.device).cumsum(0)
    features = torch.randn(sum(lengths), 2, device=target.device)
    boundaries, similarity = segment_scenes(features, num_boundaries, cu, backend=target.backend)
    wanted = scene_boundaries(similarity, num_boundaries, cu, backend="reference")
    assert torch.equal(boundaries, wanted)


@targets("segment_scenes", slow="triton")
def test_long_video(target):
    """Longer than a block of threads, with equal similarities."""
    features = torch.randint(2, (700, 3), device=target.device).float()
    boundaries, similarity = segment_scenes(features, 300, backend=target.backend)
    assert len(similarity.unique()) < 20
    assert torch.equal(boundaries, scene_boundaries(similarity, 300, backend="reference"))


@targets("segment_scenes")
@pytest.mark.parametrize("frames", [0, 1, 2])
@pytest.mark.parametrize("packed", [False, True])
def test_few_frames(target, frames, packed):
    features = torch.randn(frames, 4, device=target.device)
    cu = torch.tensor([0, frames], device=target.device) if packed else None
    boundaries, similarity = segment_scenes(features, 3, cu, backend=target.backend)
    assert similarity.shape == (max(frames - 1, 0),)
    wanted = {0: [0, 0, 0], 1: [1, 1, 1], 2: [1, 2, 2]}[frames]
    assert boundaries.tolist() == [wanted]


@targets("segment_scenes")
def test_no_videos(target):
    cu = torch.zeros(1, dtype=torch.int32, device=target.device)
    features = torch.zeros(0, 4, device=target.device)
    boundaries, similarity = segment_scenes(features, 3, cu, backend=target.backend)
    assert boundaries.shape == (0, 3)
    assert similarity.shape == (0,)


@targets("segment_scenes")
def test_gradient(target):
    features = torch.randn(6, 4, device=target.device, requires_grad=True)
    _, similarity = segment_scenes(features, 2, backend=target.backend)
    got = torch.autograd.grad(similarity.sum(), features)[0]
    wanted = torch.autograd.grad(frame_similarity(features).sum(), features)[0]
    torch.testing.assert_close(got, wanted)

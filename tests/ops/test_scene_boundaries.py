# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from targets import targets

from tdc_kernels import frame_similarity, scene_boundaries, segment_scenes


def naive(
    similarity: list[float], num_boundaries: int, cu: list[int], threshold: float | None
) -> list[list[int]]:
    """The contract in words: lowest first, of equals the earlier, NaN lowest of all."""
    rows = []
    for start, stop in pairwise(cu):
        values = similarity[start : max(stop - 1, start)]
        values = [-math.inf if math.isnan(v) else v for v in values]
        pairs = [t for t, v in enumerate(values) if threshold is None or v < threshold]
        lowest = sorted(pairs, key=lambda t: (values[t], t))[:num_boundaries]
        row = sorted(t + 1 for t in lowest)
        rows.append(row + [stop - start] * (num_boundaries - len(row)))
    return rows


# Few distinct values: most examples have ties, at the cut as well.
values = st.sampled_from([-1.0, -0.0, 0.0, 0.25, 0.5, 1.0, math.inf, -math.inf, math.nan])


@targets("scene_boundaries")
@given(
    lengths=st.lists(st.integers(0, 9), max_size=4),
    num_boundaries=st.integers(0, 6),
    threshold=st.sampled_from([None, 0.0, 0.25, 0.5, 1.0, -math.inf, math.inf]),
    data=st.data(),
)
def test_contract(target, lengths, num_boundaries, threshold, data):
    cu = [0]
    for length in lengths:
        cu.append(cu[-1] + length)
    pairs = max(cu[-1] - 1, 0)
    similarity = data.draw(st.lists(values, min_size=pairs, max_size=pairs))
    got = scene_boundaries(
        torch.tensor(similarity, device=target.device),
        num_boundaries,
        torch.tensor(cu, device=target.device),
        threshold,
        backend=target.backend,
    )
    assert got.dtype == torch.int32
    assert got.shape == (len(lengths), num_boundaries)
    assert got.tolist() == naive(similarity, num_boundaries, cu, threshold)


@targets("scene_boundaries")
@given(similarity=st.lists(values, max_size=40), num_boundaries=st.integers(0, 30))
def test_one_video_needs_no_prefix_sums(target, similarity, num_boundaries):
    got = scene_boundaries(
        torch.tensor(similarity, device=target.device), num_boundaries, backend=target.backend
    )
    assert got.tolist() == naive(similarity, num_boundaries, [0, len(similarity) + 1], None)


@targets("scene_boundaries")
def test_long_video(target):
    similarity = torch.rand(20_000)
    got = scene_boundaries(similarity.to(target.device), 500, backend=target.backend)
    assert got.tolist() == naive(similarity.tolist(), 500, [0, 20_001], None)


@targets("scene_boundaries")
def test_all_equal_takes_the_earliest(target):
    got = scene_boundaries(torch.ones(9, device=target.device), 4, backend=target.backend)
    assert got.tolist() == [[1, 2, 3, 4]]


@targets("scene_boundaries")
def test_threshold_is_compared_in_fp32(target):
    # 0.7 in fp32 is 0.69999999, in fp64 it would pass as lower than 0.7
    got = scene_boundaries(
        torch.tensor([0.7, 0.6], device=target.device), 2, threshold=0.7, backend=target.backend
    )
    assert got.tolist() == [[2, 3]]


@targets("scene_boundaries")
def test_strides_and_gradient(target):
    similarity = torch.rand(4, 30, device=target.device, requires_grad=True)
    column = similarity[:, 3]
    got = scene_boundaries(column, 2, backend=target.backend)
    assert not got.requires_grad
    assert torch.equal(got, scene_boundaries(column.contiguous(), 2, backend=target.backend))


@targets("scene_boundaries")
def test_empty_batch(target):
    got = scene_boundaries(
        torch.zeros(0, device=target.device),
        3,
        torch.zeros(1, dtype=torch.int32, device=target.device),
        backend=target.backend,
    )
    assert got.shape == (0, 3)


@targets("segment_scenes")
@pytest.mark.parametrize("cu", [None, [0, 0, 12, 13, 30]])
def test_segment_scenes_is_both(target, cu):
    features = torch.randn(30, 4, 5, device=target.device)
    cu_frames = None if cu is None else torch.tensor(cu, device=target.device)
    boundaries, similarity = segment_scenes(features, 5, cu_frames, 0.5, backend=target.backend)
    torch.testing.assert_close(similarity, frame_similarity(features, cu_frames))
    wanted = scene_boundaries(similarity, 5, cu_frames, 0.5, backend="reference")
    assert torch.equal(boundaries, wanted)


@targets("segment_scenes")
@pytest.mark.parametrize("frames", [0, 1, 2])
@pytest.mark.parametrize("packed", [False, True])
def test_segment_scenes_few_frames(target, frames, packed):
    features = torch.randn(frames, 4, device=target.device)
    cu = torch.tensor([0, frames], device=target.device) if packed else None
    boundaries, similarity = segment_scenes(features, 3, cu, backend=target.backend)
    assert similarity.shape == (max(frames - 1, 0),)
    wanted = {0: [0, 0, 0], 1: [1, 1, 1], 2: [1, 2, 2]}[frames]
    assert boundaries.tolist() == [wanted]


@targets("segment_scenes")
def test_segment_scenes_gradient(target):
    features = torch.randn(6, 4, device=target.device, requires_grad=True)
    _, similarity = segment_scenes(features, 2, backend=target.backend)
    got = torch.autograd.grad(similarity.sum(), features)[0]
    wanted = torch.autograd.grad(frame_similarity(features).sum(), features)[0]
    torch.testing.assert_close(got, wanted)


def test_beyond_32_bit_addresses_on_meta():
    similarity = torch.empty(2**31 + 4, device="meta")
    assert scene_boundaries(similarity, 7).shape == (1, 7)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([0.5], 2), TypeError, "similarity: expected a floating tensor"),
        ((torch.ones(3).double(), 2), TypeError, "similarity: expected float32 like"),
        ((torch.ones(3, 1), 2), ValueError, r"similarity: expected shape \[F-1\]"),
        ((torch.ones(3), 2.0), TypeError, "num_boundaries: expected an integer >= 0, got float 2"),
        ((torch.ones(3), True), TypeError, "num_boundaries: expected an integer"),
        ((torch.ones(3), -1), ValueError, "num_boundaries: expected an integer >= 0, got -1"),
        ((torch.ones(3), 2, torch.tensor([0, 3])), ValueError, "prefix sums from 0 to 4"),
        ((torch.ones(0), 2, torch.tensor([0, 7])), ValueError, "prefix sums from 0 to 0 or 1, got"),
        ((torch.ones(3), 2, None, "low"), TypeError, "threshold: expected a number or None"),
        ((torch.ones(3), 2, None, math.nan), ValueError, "threshold: .* got NaN"),
    ],
)
def test_errors(arguments, error, message):
    with pytest.raises(error, match=message):
        scene_boundaries(*arguments)

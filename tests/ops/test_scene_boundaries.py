# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from targets import targets

from tdc_kernels import scene_boundaries


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


@targets("scene_boundaries", slow="triton")
def test_long_video(target):
    similarity = torch.rand(20_000)
    got = scene_boundaries(similarity.to(target.device), 500, backend=target.backend)
    assert got.tolist() == naive(similarity.tolist(), 500, [0, 20_001], None)


LONG = {
    # Beyond what a block of threads looks at in one step, and any digit of a key may decide.
    "any bits": lambda n: torch.randint(-(2**31), 2**31, (n,)).to(torch.int32).view(torch.float32),
    "equals in every block": lambda n: torch.randint(5, (n,)).float(),
    "last digit": lambda n: (
        (torch.randint(200, (n,)) + 0x3F7F0000).to(torch.int32).view(torch.float32)
    ),
    "all equal": lambda n: torch.full((n,), -0.5),
}


@targets("scene_boundaries")
@pytest.mark.parametrize("kind", LONG)
@pytest.mark.parametrize(("num_boundaries", "threshold"), [(1, None), (400, 1.0), (1500, None)])
def test_long_and_short_videos(target, kind, num_boundaries, threshold):
    cu = torch.tensor([0, 2600, 1, 0, 33, 1026, 2, 0]).cumsum(0).tolist()
    similarity = LONG[kind](cu[-1] - 1)
    got = scene_boundaries(
        similarity.to(target.device),
        num_boundaries,
        torch.tensor(cu, device=target.device),
        threshold,
        backend=target.backend,
    )
    assert got.tolist() == naive(similarity.tolist(), num_boundaries, cu, threshold)


@targets("scene_boundaries")
def test_all_equal_takes_the_earliest(target):
    got = scene_boundaries(torch.ones(9, device=target.device), 4, backend=target.backend)
    assert got.tolist() == [[1, 2, 3, 4]]


@targets("scene_boundaries")
def test_both_zeros_are_equal(target):
    similarity = torch.tensor([0.0, -0.0, 0.0, -1.0, -0.0], device=target.device)
    got = scene_boundaries(similarity, 2, backend=target.backend)
    assert got.tolist() == [[1, 4]]
    got = scene_boundaries(similarity, 2, threshold=-0.0, backend=target.backend)
    assert got.tolist() == [[4, 6]]
    got = scene_boundaries(-similarity, 3, threshold=0.0, backend=target.backend)
    assert got.tolist() == [[6, 6, 6]]


@targets("scene_boundaries")
def test_threshold_is_compared_in_fp32(target):
    # 0.7 in fp32 is 0.69999999, in fp64 it would pass as lower than 0.7
    got = scene_boundaries(
        torch.tensor([0.7, 0.6], device=target.device), 2, threshold=0.7, backend=target.backend
    )
    assert got.tolist() == [[2, 3]]


@targets("scene_boundaries")
@pytest.mark.parametrize(("threshold", "wanted"), [(1e300, [1, 2, 4]), (-1e300, [5, 5, 5])])
def test_threshold_beyond_fp32_is_infinite(target, threshold, wanted):
    similarity = torch.tensor([3e38, math.nan, math.inf, -1.0], device=target.device)
    got = scene_boundaries(similarity, 3, threshold=threshold, backend=target.backend)
    assert got.tolist() == [wanted]


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

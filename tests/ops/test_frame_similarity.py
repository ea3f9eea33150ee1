# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from targets import dtypes, targets
from tolerance import judge

from tdc_kernels import frame_similarity
from tdc_kernels.ops.frame_similarity.reference import accumulate


def exact(features: torch.Tensor) -> torch.Tensor:
    """The formula, one pair at a time, in fp64."""
    frames = features.double().flatten(1)
    return torch.tensor(
        [
            float(x @ y) / (max(float(x.norm()), 1e-8) * max(float(y.norm()), 1e-8))
            for x, y in pairwise(frames)
        ],
        dtype=torch.float64,
    )


@targets("frame_similarity")
@dtypes
@pytest.mark.parametrize("shape", [(2, 3), (7, 5, 16), (12, 4, 3, 8), (3, 20_000)], ids=str)
def test_formula(target, dtype, shape):
    features = torch.randn(shape).to(dtype)
    got = frame_similarity(features.to(target.device), backend=target.backend)
    assert got.dtype == torch.float32  # for every input dtype
    plain = F.cosine_similarity(features[:-1].flatten(1), features[1:].flatten(1), dim=1)
    judge(got.cpu(), plain.float(), exact(features))


@targets("frame_similarity")
@pytest.mark.parametrize("frames", [0, 1, 2])
def test_few_frames(target, frames):
    features = torch.randn(frames, 3, 4, device=target.device)
    got = frame_similarity(features, backend=target.backend)
    assert got.shape == (max(frames - 1, 0),)
    packed = frame_similarity(
        features, torch.tensor([0, frames], device=target.device), backend=target.backend
    )
    torch.testing.assert_close(packed, got, rtol=0, atol=0)


@targets("frame_similarity")
@given(lengths=st.lists(st.integers(0, 5), max_size=5), wide=st.booleans())
def test_ragged_is_each_video_alone(target, lengths, wide):
    cu = torch.tensor([0, *lengths]).cumsum(0)
    features = torch.randn(int(cu[-1]), 6)
    got = frame_similarity(
        features.to(target.device),
        cu.to(target.device, torch.int64 if wide else torch.int32),
        backend=target.backend,
    ).cpu()
    wanted = torch.full((max(len(features) - 1, 0),), math.inf)  # straddling pairs stay so
    for start, stop in pairwise(cu.tolist()):
        if stop - start > 1:
            wanted[start : stop - 1] = exact(features[start:stop]).float()
    torch.testing.assert_close(got, wanted)
    assert torch.equal(got.isinf(), wanted.isinf())


@targets("frame_similarity")
def test_zero_norm_and_equal_frames(target):
    features = torch.stack([torch.zeros(9), torch.zeros(9), torch.ones(9), torch.ones(9)])
    got = frame_similarity(features.to(target.device), backend=target.backend).cpu()
    torch.testing.assert_close(got, torch.tensor([0.0, 0.0, 1.0]))


@targets("frame_similarity")
def test_tiny_norms_are_clamped(target):
    # |x| = 1e-10 is divided by 1e-8: 1e-10 * 1e-10 / 1e-16
    features = torch.full((2, 1), 1e-10, device=target.device)
    got = frame_similarity(features, backend=target.backend)
    torch.testing.assert_close(got.cpu(), torch.tensor([1e-4]))


@targets("frame_similarity")
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_frame_stays_local(target, bad):
    features = torch.randn(6, 4)
    features[2, 1] = bad
    got = frame_similarity(features.to(target.device), backend=target.backend).cpu()
    assert got.isnan().tolist() == [False, True, True, False, False]


@targets("frame_similarity")
def test_strides(target):
    base = torch.randn(4, 3, 7, device=target.device)
    for view in (base.transpose(0, 2), base[::2], base[:, :, ::3], base[0].expand(5, 3, 7)):
        got = frame_similarity(view, backend=target.backend)
        wanted = frame_similarity(view.contiguous(), backend=target.backend)
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("cu", [None, [0, 2, 2, 5]])
def test_gradcheck(cu):
    features = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    cu_frames = None if cu is None else torch.tensor(cu, dtype=torch.int32)
    finite = torch.ones(4, dtype=torch.bool) if cu is None else torch.tensor([1, 0, 1, 1]).bool()
    assert torch.autograd.gradcheck(lambda x: accumulate(x, cu_frames)[0][finite], features)


@targets("frame_similarity")
def test_gradient_does_not_leak_through_straddling_pairs(target):
    features = torch.randn(4, 3, device=target.device, requires_grad=True)
    cu = torch.tensor([0, 2, 4], device=target.device)
    similarity = frame_similarity(features, cu, backend=target.backend)
    grad = torch.autograd.grad(similarity[1], features)[0]
    assert torch.equal(grad, torch.zeros_like(grad))


@targets("frame_similarity")
def test_autocast_changes_nothing(target):
    features = torch.randn(5, 64, device=target.device)
    wanted = frame_similarity(features, backend=target.backend)
    with torch.autocast(target.device, torch.bfloat16):
        got = frame_similarity(features, backend=target.backend)
    torch.testing.assert_close(got, wanted, rtol=0, atol=0)


def test_beyond_32_bit_addresses_on_meta():
    features = torch.empty(2500, 576, 1536, device="meta", dtype=torch.bfloat16)
    assert features.numel() > 2**31
    assert frame_similarity(features).shape == (2499,)


@pytest.mark.gpu
def test_beyond_32_bit_addresses():
    features = torch.zeros(2500, 576 * 1536, device="cuda", dtype=torch.bfloat16)
    features[-2:] = torch.randn(2, 576 * 1536, device="cuda")
    got = frame_similarity(features)
    assert not got[:-1].any()
    torch.testing.assert_close(
        got[-1:].cpu().double(), exact(features[-2:].cpu()), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize(
    ("features", "cu_frames", "error", "message"),
    [
        ([1.0], None, TypeError, "features: expected a floating tensor .* got list"),
        (torch.ones(3, 2).int(), None, TypeError, r"features: .* got int32 \[3, 2\]"),
        (torch.ones(3), None, ValueError, r"features: expected shape .* got float32 \[3\]"),
        (torch.ones(3, 2), [0, 3], TypeError, "cu_frames: expected an int32 or int64 .* got list"),
        (torch.ones(3, 2), torch.tensor([0.0, 3.0]), TypeError, "cu_frames: .* got float32"),
        (torch.ones(3, 2), torch.tensor([[0, 3]]), ValueError, "cu_frames: expected shape"),
        (
            torch.ones(3, 2),
            torch.tensor([0, 4]),
            ValueError,
            r"prefix sums from 0 to 3, got \[0, 4",
        ),
        (torch.ones(3, 2), torch.tensor([0, 2, 1, 3]), ValueError, "cu_frames: expected prefix"),
        (torch.ones(3, 2), torch.tensor([1, 3]), ValueError, "cu_frames: expected prefix"),
        (torch.ones(3, 2), torch.zeros(0).long(), ValueError, "at least one entry"),
        (torch.ones(3, 2), torch.tensor([0, 3], device="meta"), ValueError, "a tensor on cpu"),
    ],
)
def test_errors(features, cu_frames, error, message):
    with pytest.raises(error, match=message):
        frame_similarity(features, cu_frames)

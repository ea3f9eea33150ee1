# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from targets import dtypes, targets
from tolerance import judge

from tdc_kernels import frame_similarity, native
from tdc_kernels.ops.frame_similarity import as_rows
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


def gradient(function, features, cu_frames, weights):
    """Gradient of a weighted sum of the similarities inside videos."""
    x = features.clone().requires_grad_()
    similarity = function(x, cu_frames)
    inside = similarity.isfinite()
    return torch.autograd.grad((similarity[inside] * weights[inside]).sum(), x)[0]


def exact_gradient(features, cu_frames, weights):
    """The derivative written out, pair by pair, in extended precision: fp64 is judged as well."""
    x = features.double().flatten(1).numpy().astype(np.longdouble)
    grad = np.zeros_like(x)
    starts = set() if cu_frames is None else set(cu_frames.tolist())
    for t in range(1, len(x)):
        if t in starts:
            continue
        a, b = x[t - 1], x[t]
        g = np.longdouble(weights[t - 1].item())
        norm_a, norm_b = np.sqrt(a @ a), np.sqrt(b @ b)
        cosine = a @ b / (norm_a * norm_b)
        grad[t - 1] += g * (b / (norm_a * norm_b) - cosine * a / norm_a**2)
        grad[t] += g * (a / (norm_a * norm_b) - cosine * b / norm_b**2)
    return torch.from_numpy(grad.astype(np.float64))


def plain(features, cu_frames):
    """torch's own function in the features' dtype."""
    s = F.cosine_similarity(features[:-1].flatten(1), features[1:].flatten(1), dim=1)
    if cu_frames is None:
        return s
    starts = [t - 1 for t in cu_frames.tolist() if 0 < t < len(features)]
    return s.index_fill(0, torch.tensor(starts, dtype=torch.long), math.inf)


@targets("frame_similarity", slow="triton")
@dtypes
@pytest.mark.parametrize("cu", [None, [0, 1, 1, 18, 40]])
@pytest.mark.parametrize("width", [3, 64, 3000])
def test_gradient(target, dtype, cu, width):
    features = torch.randn(40, width).to(dtype)
    weights = torch.randn(39)
    cu_frames = None if cu is None else torch.tensor(cu)

    def ours(x, cu_frames):
        on_device = None if cu_frames is None else cu_frames.to(target.device)
        return frame_similarity(x.to(target.device), on_device, backend=target.backend).cpu()

    got = gradient(ours, features, cu_frames, weights)
    assert got.dtype == dtype
    judge(
        got,
        gradient(plain, features, cu_frames, weights.to(dtype)),
        exact_gradient(features, cu_frames, weights),
    )


@targets("frame_similarity")
def test_gradient_of_zero_and_tiny_frames(target):
    features = torch.randn(5, 8)
    features[1] = 0
    features[3] *= 1e-9
    got = gradient(
        lambda x, cu: frame_similarity(x.to(target.device), backend=target.backend).cpu(),
        features,
        None,
        torch.ones(4),
    )
    wanted = gradient(lambda x, cu: accumulate(x, cu)[0], features.double(), None, torch.ones(4))
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=0)


@targets("frame_similarity")
def test_gradient_stays_within_its_video(target):
    """A NaN in one video reaches no gradient of another."""
    features = torch.randn(6, 4)
    features[2] = math.nan
    cu_frames = torch.tensor([0, 3, 6])
    x = features.to(target.device).requires_grad_()
    similarity = frame_similarity(x, cu_frames.to(target.device), backend=target.backend)
    grad = torch.autograd.grad(similarity[3:].sum(), x)[0].cpu()
    if target.backend != "reference":  # 0 * NaN in plain PyTorch
        assert grad[3:].isfinite().all()
    assert grad[3:].nan_to_num().any()


@targets("frame_similarity", slow="triton")
def test_same_bits_every_time(target):
    features = torch.randn(70, 5000, device=target.device, requires_grad=True)
    runs = []
    threads = torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        out = frame_similarity(features, backend=target.backend)
        runs.append((out, torch.autograd.grad(out.sum(), features)[0]))
    torch.set_num_threads(threads)
    for first, second in zip(*runs, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("name", native.INSTRUCTION_SETS)
@dtypes
def test_every_instruction_set(name, dtype, instruction_set):
    instruction_set(name)
    for width in (2, 31, 64, 257, 40_000):  # below, at and beyond a vector, a loop and a tile
        features = torch.randn(4, width).to(dtype)
        got = frame_similarity(features, backend="native")
        judge(got, plain(features, None).float(), exact(features))
        ours = gradient(
            lambda x, _: frame_similarity(x, backend="native"), features, None, torch.ones(3)
        )
        theirs = gradient(plain, features, None, torch.ones(3, dtype=dtype))
        judge(ours, theirs, exact_gradient(features, None, torch.ones(3)))


def test_frames_are_not_copied_where_memory_allows():
    base = torch.randn(6, 4, 8)
    for view in (base, base[::2], base[:, 1:3], base.transpose(1, 2), base[0].expand(5, 4, 8)):
        assert as_rows(view).untyped_storage().data_ptr() == base.untyped_storage().data_ptr()
    assert as_rows(base[:, :, ::3]).stride(1) == 1  # gaps: a copy


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


@targets("frame_similarity")
def test_smallest_norm_is_exact_in_fp64(target):
    """Found by fuzzing: Triton's was 1e-8 in fp32, 6e-9 of it off."""
    x = torch.full((2, 4), 1e-10, dtype=torch.float64, device=target.device, requires_grad=True)
    (grad,) = torch.autograd.grad(frame_similarity(x, backend=target.backend).sum(), x)
    torch.testing.assert_close(grad, torch.full_like(grad, 1e6), rtol=1e-12, atol=0)

# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from targets import dtypes, targets
from tolerance import judge

from tdc_kernels import anchor_queries
from tdc_kernels.ops.anchor_queries.reference import accumulate


def exact(tokens, num_queries, weight=None, bias=None, index=None):
    """The bins written out, in fp64."""
    tokens = tokens.double() if index is None else tokens.double()[index.long()]
    length = tokens.shape[1]
    bins = [
        tokens[:, math.floor(j * length / num_queries) : math.ceil((j + 1) * length / num_queries)]
        for j in range(num_queries)
    ]
    pooled = torch.stack([b.mean(1) for b in bins], 1)
    if weight is None:
        return pooled
    return pooled @ weight.double().T + (0 if bias is None else bias.double())


def plain(tokens, num_queries, weight=None, bias=None, index=None):
    tokens = tokens if index is None else tokens[index.long()]
    pooled = F.adaptive_avg_pool1d(tokens.transpose(1, 2), num_queries).transpose(1, 2)
    return pooled if weight is None else F.linear(pooled, weight, bias)


@targets("anchor_queries")
@dtypes
@pytest.mark.parametrize("linear", ["none", "weight", "bias"])
@pytest.mark.parametrize("indexed", [False, True])
def test_formula(target, dtype, linear, indexed):
    tokens = torch.randn(5, 156, 48).to(dtype)
    weight = torch.randn(32, 48).to(dtype) / 7 if linear != "none" else None
    bias = torch.randn(32).to(dtype) if linear == "bias" else None
    index = torch.tensor([4, 0, 0], dtype=torch.int32) if indexed else None
    args = (tokens, 16, weight, bias, index)
    on_device = [x.to(target.device) if isinstance(x, torch.Tensor) else x for x in args]
    got = anchor_queries(*on_device, backend=target.backend)
    assert got.dtype == dtype
    judge(got.cpu(), plain(*args), exact(*args))


@targets("anchor_queries")
@given(length=st.integers(1, 40), num_queries=st.integers(1, 24))
def test_bins(target, length, num_queries):
    tokens = torch.randn(2, length, 3)
    got = anchor_queries(tokens.to(target.device), num_queries, backend=target.backend)
    torch.testing.assert_close(got.cpu(), exact(tokens, num_queries).float())


@targets("anchor_queries")
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_token_stays_in_its_bins(target, bad):
    tokens = torch.randn(1, 7, 2)  # 3 bins: 0-2, 2-4, 4-6
    tokens[0, 3] = bad
    got = anchor_queries(tokens.to(target.device), 3, backend=target.backend)
    assert got.isfinite().all(2).tolist() == [[True, False, True]]


@targets("anchor_queries")
def test_fp16_sums_do_not_overflow(target):
    tokens = torch.full((1, 30, 2), 60_000.0, dtype=torch.float16, device=target.device)
    got = anchor_queries(tokens, 3, backend=target.backend)  # ten times 60,000; fp16 ends at 65,504
    assert torch.equal(got, tokens[:, :3])


@targets("anchor_queries")
def test_empty_and_single(target):
    tokens = torch.randn(3, 5, 4, device=target.device)
    none = torch.zeros(0, dtype=torch.int64, device=target.device)
    assert anchor_queries(tokens, 2, index=none, backend=target.backend).shape == (0, 2, 4)
    assert anchor_queries(tokens[:0], 2, backend=target.backend).shape == (0, 2, 4)
    one = anchor_queries(tokens, 1, backend=target.backend)
    torch.testing.assert_close(one, tokens.mean(1, keepdim=True))


@targets("anchor_queries")
def test_strides(target):
    base = torch.randn(6, 9, 4, device=target.device)
    for view in (base.transpose(0, 1), base[::2, 1:], base.permute(2, 0, 1)):
        got = anchor_queries(view, 3, backend=target.backend)
        torch.testing.assert_close(got, anchor_queries(view.contiguous(), 3))


@pytest.mark.parametrize("length", [2, 7])
def test_gradcheck(length):
    tokens = torch.randn(3, length, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(2, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([2, 0, 2])  # a frame twice: its gradients add up

    def op(tokens, weight, bias):
        return anchor_queries(tokens, 3, weight, bias, index)

    assert torch.autograd.gradcheck(op, (tokens, weight, bias))
    assert torch.autograd.gradcheck(lambda x: accumulate(x, 3), tokens)


@targets("anchor_queries")
def test_autocast_casts_the_linear_map_only(target):
    tokens = torch.randn(4, 156, 64, device=target.device)
    weight = torch.randn(8, 64, device=target.device, requires_grad=True)
    bias = torch.randn(8, device=target.device)
    with torch.autocast(target.device, torch.bfloat16):
        pooled = anchor_queries(tokens, 16, backend=target.backend)
        mapped = anchor_queries(tokens, 16, weight, bias, backend=target.backend)
        wide = anchor_queries(tokens.double(), 16, weight.double(), backend=target.backend)
    assert pooled.dtype == torch.float32
    assert wide.dtype == torch.float64
    assert mapped.dtype == torch.bfloat16
    wanted = F.linear(pooled.bfloat16(), weight.bfloat16(), bias.bfloat16())
    torch.testing.assert_close(mapped, wanted, rtol=0, atol=0)
    mapped.float().sum().backward()
    assert weight.grad.dtype == torch.float32


def test_beyond_32_bit_addresses_on_meta():
    tokens = torch.empty(4000, 156, 3584, device="meta", dtype=torch.bfloat16)
    assert tokens.numel() > 2**31
    weight = torch.empty(768, 3584, device="meta", dtype=torch.bfloat16)
    assert anchor_queries(tokens, 16, weight).shape == (4000, 16, 768)


@pytest.mark.gpu
def test_beyond_32_bit_addresses():
    tokens = torch.zeros(4000, 156, 3584, device="cuda", dtype=torch.bfloat16)
    tokens[-1] = torch.randn(156, 3584, device="cuda")
    got = anchor_queries(tokens, 16, index=torch.tensor([3999], device="cuda"))
    torch.testing.assert_close(got, anchor_queries(tokens[-1:].clone(), 16), rtol=0, atol=0)


X, W = torch.ones(3, 5, 4), torch.ones(2, 4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((X[0], 2), ValueError, r"tokens: expected shape \[F, L, D\], got float32 \[5, 4\]"),
        ((X.int(), 2), TypeError, "tokens: expected a floating tensor"),
        ((X[:, :0], 2), ValueError, "tokens: expected .* L >= 1"),
        ((X, 0), ValueError, "num_queries: expected an integer >= 1, got 0"),
        ((X, 2, W[:, :3]), ValueError, r"weight: expected size 4 in dimension 1 \(tokens' D\)"),
        ((X, 2, W.double()), TypeError, "weight: expected float32 like tokens, got float64"),
        ((X, 2, None, W[0]), ValueError, "bias: expected None without weight"),
        ((X, 2, W, W[0]), ValueError, "bias: expected size 2 in dimension 0"),
        ((X, 2, W, W[:, 0].half()), TypeError, "bias: expected float32 like tokens"),
        ((X, 2, None, None, W[0]), TypeError, "index: expected an int32 or int64"),
        ((X, 2, W.to("meta")), ValueError, "weight: expected a tensor on cpu, got one on meta"),
    ],
)
def test_errors(arguments, error, message):
    with pytest.raises(error, match=message):
        anchor_queries(*arguments)

# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from targets import dtypes, targets
from tolerance import judge

from tdc_kernels import anchor_queries, native, registry
from tdc_kernels.ops.anchor_queries import OP
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
    tokens = torch.randn(3, 156, 48).to(dtype)
    weight = torch.randn(32, 48).to(dtype) / 7 if linear != "none" else None
    bias = torch.randn(32).to(dtype) if linear == "bias" else None
    index = torch.tensor([2, 0, 0], dtype=torch.int32) if indexed else None
    args = (tokens, 16, weight, bias, index)
    on_device = [x.to(target.device) if isinstance(x, torch.Tensor) else x for x in args]
    got = anchor_queries(*on_device, backend=target.backend)
    assert got.dtype == dtype
    judge(got.cpu(), plain(*args), exact(*args))


@targets("anchor_queries")
@given(length=st.integers(1, 40), num_queries=st.integers(1, 24))
@settings(max_examples=40)
def test_bins(target, length, num_queries):
    tokens = torch.randn(1, length, 3)
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
    base = torch.randn(6, 9, 26, device=target.device)
    index = torch.tensor([1, 7, 0, 7, 2, 7], device=target.device)[::2]
    for view in (
        base.transpose(0, 1),
        base[::2, 1:],
        base.permute(2, 0, 1),
        base[..., 2:],  # 24 values a row, every second row not aligned for wide loads
        base[:, ::2, 4:12],
        base[0].expand(3, 9, 26),
    ):
        got = anchor_queries(view, 3, index=index, backend=target.backend)
        wanted = anchor_queries(view.contiguous(), 3, index=index, backend="reference")
        torch.testing.assert_close(got, wanted)


def operator_spy(monkeypatch, backend):
    """The arguments of the backend's operator, call by call."""
    entry, seen = registry.entry(OP, backend), []

    def handle(*args):
        seen.append(args)
        return entry.handle(*args)

    entries = {**registry._ENTRIES[OP], backend: replace(entry, handle=handle)}
    monkeypatch.setitem(registry._ENTRIES, OP, entries)
    return seen


@targets("anchor_queries")
def test_tokens_are_not_copied_where_memory_allows(target, monkeypatch):
    seen = operator_spy(monkeypatch, target.backend)
    base = torch.randn(3, 9, 24, device=target.device)
    dense = (
        base,
        base[:, :5],
        base[::2],
        base.transpose(0, 1),
        base[..., :8],
        base[0].expand(2, 9, 24),
    )
    for view in dense:
        anchor_queries(view, 3, backend=target.backend)
        assert seen.pop()[0].data_ptr() == base.data_ptr()
    anchor_queries(base[..., ::3], 3, backend=target.backend)
    assert seen.pop()[0].stride(2) == 1  # gaps: a copy


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


def gradient(function, tokens, num_queries, index, grad):
    x = tokens.clone().requires_grad_()
    return torch.autograd.grad(function(x, num_queries, index=index), x, grad)[0]


def on(target):
    """The public function on the target, for tensors on the CPU."""

    def function(tokens, num_queries, index=None):
        index = None if index is None else index.to(target.device)
        tokens = tokens.to(target.device)
        return anchor_queries(tokens, num_queries, index=index, backend=target.backend).cpu()

    return function


@targets("anchor_queries")
@dtypes
@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize(("length", "width"), [(10, 64), (2, 3), (8, 5)])  # L > K, L < K, L = 2K
def test_gradient(target, dtype, indexed, length, width):
    tokens = torch.randn(3, length, width).to(dtype)
    index = torch.tensor([2, 0, 2, 2]) if indexed else None
    grad = torch.randn(4 if indexed else 3, 4, width).to(dtype)
    got = gradient(on(target), tokens, 4, index, grad)
    assert got.dtype == dtype
    judge(
        got,
        gradient(plain, tokens, 4, index, grad),
        gradient(exact, tokens.double(), 4, index, grad.double()),
    )


@targets("anchor_queries")
@given(
    length=st.integers(1, 20),
    num_queries=st.integers(1, 12),
    index=st.none() | st.lists(st.integers(0, 1), max_size=3),
)
@settings(max_examples=15)
def test_gradient_of_any_bins(target, length, num_queries, index):
    index = None if index is None else torch.tensor(index, dtype=torch.int32)
    tokens = torch.randn(2, length, 2)
    grad = torch.randn(2 if index is None else len(index), num_queries, 2)
    got = gradient(on(target), tokens, num_queries, index, grad)
    wanted = gradient(exact, tokens.double(), num_queries, index, grad.double())
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-6)


@targets("anchor_queries")
def test_gradient_of_frames_nobody_asked_for_is_zero(target):
    tokens = torch.randn(6, 7, 24)
    index = torch.tensor([4, 1, 4])
    got = gradient(on(target), tokens, 3, index, torch.randn(3, 3, 24))
    assert not got[[0, 2, 3, 5]].any()
    assert got[[1, 4]].all()
    none = gradient(on(target), tokens, 3, index[:0], torch.zeros(0, 3, 24))
    assert torch.equal(none, torch.zeros_like(tokens))


@targets("anchor_queries")
def test_bad_gradient_stays_in_its_bin(target):
    grad = torch.ones(1, 3, 8)
    grad[0, 1] = math.nan  # of tokens 2-4
    got = gradient(on(target), torch.randn(2, 7, 8), 3, torch.tensor([1]), grad)
    if target.backend != "reference":  # 0 * NaN in plain PyTorch
        assert got.isnan().all(2).tolist()[1] == [False, False, True, True, True, False, False]
    assert got[1, 2:5].isnan().all()
    assert not got[0].any()


@targets("anchor_queries")
@pytest.mark.parametrize("index", [None, [1, 0, 1]])
def test_same_bits_every_time(target, index):
    if target.backend == "reference":
        pytest.skip("autograd adds up a frame's anchors as it likes")
    tokens = torch.randn(3, 20, 400)
    index = None if index is None else torch.tensor(index)
    grad = torch.randn(3, 7, 400)
    runs = []
    threads = torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        runs.append(
            (
                on(target)(tokens, 7, index),
                gradient(on(target), tokens, 7, index, grad),
            )
        )
    torch.set_num_threads(threads)
    for first, second in zip(*runs, strict=True):
        assert torch.equal(first, second)


@targets("anchor_queries")
@pytest.mark.parametrize("tokens_dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_pooled_in_another_dtype(target, tokens_dtype, dtype):
    """What autocast asks of the operator, and what comes back to its gradient."""
    tokens = torch.randn(2, 11, 40).to(tokens_dtype)
    index = torch.tensor([1, 0, 1])
    entry = registry.entry(OP, target.backend)
    got = entry.handle(tokens.to(target.device), 3, index.to(target.device), dtype).cpu()
    assert got.dtype == dtype
    wanted = exact(tokens, 3, index=index)
    judge(got, wanted.to(dtype), wanted)
    if entry.backward is None:
        return
    grad = torch.randn(3, 3, 40).to(dtype)
    args = grad.to(target.device), 2, 11, index.to(target.device), tokens_dtype
    back = entry.backward(*args).cpu()
    assert back.dtype == tokens_dtype
    wanted = gradient(exact, tokens.double(), 3, index, grad.double())
    judge(back, wanted.to(tokens_dtype), wanted)


@pytest.mark.parametrize("name", native.INSTRUCTION_SETS)
@dtypes
def test_every_instruction_set(name, dtype, instruction_set):
    instruction_set(name)

    def ours(tokens, num_queries, index=None):
        return anchor_queries(tokens, num_queries, index=index, backend="native")

    index = torch.tensor([1, 1, 0])
    for width in (2, 31, 64, 257, 1100):  # below, at and beyond a vector, a loop and a tile
        tokens, grad = torch.randn(2, 50, width).to(dtype), torch.randn(3, 2, width).to(dtype)
        judge(ours(tokens, 2, index), plain(tokens, 2, index=index), exact(tokens, 2, index=index))
        judge(
            gradient(ours, tokens, 2, index, grad),
            gradient(plain, tokens, 2, index, grad),
            gradient(exact, tokens.double(), 2, index, grad.double()),
        )


@pytest.mark.skipif(native.CPU.why_not() is not None, reason="no native library")
@pytest.mark.parametrize("frame", [-1, 5, 2**31])
def test_native_refuses_frames_that_are_not_there(frame):
    tokens = torch.ones(5, 3, 2)
    index = torch.tensor([0, frame])
    message = f"index: expected frame numbers from 0 to 4, got {frame}"
    with pytest.raises(RuntimeError, match=message):
        registry.entry(OP, "native").handle(tokens, 2, index)
    backward = registry.entry(OP, "native").backward
    with pytest.raises(RuntimeError, match=message):
        backward(torch.ones(2, 2, 2), 5, 3, index, torch.float32)


@pytest.mark.skipif(native.CPU.why_not() is not None, reason="no native library")
def test_native_refuses_other_dtypes():
    handle = registry.entry(OP, "native").handle
    with pytest.raises(RuntimeError, match="dtype: expected float64 like tokens"):
        handle(torch.ones(1, 3, 2).double(), 2, None, torch.float32)
    with pytest.raises(RuntimeError, match="dtype: expected at most float32"):
        handle(torch.ones(1, 3, 2), 2, None, torch.float64)


@targets("anchor_queries")
def test_autocast_casts_the_linear_map_only(target):
    tokens = torch.randn(2, 156, 64, device=target.device)
    weight = torch.randn(8, 64, device=target.device, requires_grad=True)
    bias = torch.randn(8, device=target.device)
    with torch.autocast(target.device, torch.bfloat16):
        pooled = anchor_queries(tokens, 16, backend=target.backend)
        mapped = anchor_queries(tokens, 16, weight, bias, backend=target.backend)
        wide = anchor_queries(tokens.double(), 16, weight.double(), backend=target.backend)
    assert pooled.dtype == torch.float32
    assert wide.dtype == torch.float64
    assert mapped.dtype == torch.bfloat16
    narrow = registry.entry(OP, target.backend).handle(tokens, 16, None, torch.bfloat16)
    judge(narrow.cpu(), exact(tokens.cpu(), 16).bfloat16(), exact(tokens.cpu(), 16))
    wanted = F.linear(narrow, weight.bfloat16(), bias.bfloat16())
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

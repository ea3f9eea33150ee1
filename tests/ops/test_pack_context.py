# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from targets import DTYPES, dtypes, targets
from tolerance import judge

from tdc_kernels import pack_context, plan_context


def make_plan(static=True, max_tokens=None):
    boundaries = torch.tensor([[2, 5], [4, 4], [1, 3]])
    return plan_context(boundaries, [0, 7, 11, 11 + 4], 3, 4 if static else None, 2, max_tokens)


def pieces(plan, width=6, dtype=torch.float64):
    return (
        torch.randn(int(plan.cu_static[-1]), width).to(dtype),
        (5 * torch.randn(len(plan.dynamic), plan.num_queries, width)).to(dtype),
        torch.randn(width).to(dtype),
    )


def gather(static, compressed, separator, plan):
    """Token by token, with torch's own normalisation in the inputs' dtype."""
    compressed = F.normalize(compressed, dim=-1).flatten(0, 1)
    rows = [*static, *compressed, separator]
    return torch.stack([rows[i] for i in plan.source.tolist()])


@targets("pack_context")
@dtypes
@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("max_tokens", [None, 9])
def test_formula(target, dtype, static, max_tokens):
    plan = make_plan(static, max_tokens)
    parts = pieces(plan, 48, dtype)
    packed, cu_context = pack_context(
        *(x.to(target.device) for x in parts), plan.to(target.device), backend=target.backend
    )
    assert packed.dtype == dtype
    assert torch.equal(cu_context.cpu(), plan.cu_context)
    judge(packed.cpu(), gather(*parts, plan), gather(*(x.double() for x in parts), plan))


@targets("pack_context")
def test_layout_by_hand(target):
    """One video of five frames, two scenes, two-token static frames and one-token queries."""
    plan = plan_context(torch.tensor([[3]]), [0, 5], None, 2, 1)
    static = torch.tensor([[1.0, 0], [2, 0], [3, 0], [4, 0]])
    compressed = torch.tensor([[[0.0, 5]], [[0, -6]], [[7, 0]]])
    packed, cu_context = pack_context(
        static.to(target.device),
        compressed.to(target.device),
        torch.tensor([9.0, 9], device=target.device),
        plan,  # still on the host: moved by the call
        backend=target.backend,
    )
    sep = [9.0, 9]
    first = [[1.0, 0], [2, 0], sep, [0, 1], sep, [0, -1], sep]
    assert packed.tolist() == [*first, [3, 0], [4, 0], sep, [1, 0], sep]
    assert cu_context.tolist() == [0, 12]
    assert cu_context.device == packed.device


@targets("pack_context")
def test_zero_norm_and_bad_rows(target):
    plan = make_plan()
    static, compressed, separator = pieces(plan, dtype=torch.float32)
    compressed[0, 0] = 0
    compressed[1, 1, 2] = math.nan
    packed, _ = pack_context(
        static.to(target.device),
        compressed.to(target.device),
        separator.to(target.device),
        plan,
        backend=target.backend,
    )
    first = len(static)
    zero = plan.source == first
    bad = plan.source == first + 3
    assert not packed.cpu()[zero].any()
    assert torch.equal(packed.cpu().isnan().any(1), bad)


@targets("pack_context")
@pytest.mark.parametrize("half", DTYPES[:2], ids=str)
def test_mixed_dtypes_are_promoted(target, half):
    plan = make_plan()
    static, compressed, separator = (x.to(target.device) for x in pieces(plan))
    packed, _ = pack_context(
        static.to(half), compressed.float(), separator.to(half), plan, backend=target.backend
    )
    assert packed.dtype == torch.float32
    same, _ = pack_context(
        static.to(half).float(), compressed.float(), separator.to(half).float(), plan
    )
    torch.testing.assert_close(packed, same, rtol=0, atol=0)


@targets("pack_context")
def test_fp16_norms_do_not_overflow(target):
    plan = make_plan()
    static, compressed, separator = pieces(plan, 512, torch.float16)
    compressed = torch.full_like(compressed, 8000)  # a norm of 181019, fp16 ends at 65504
    packed, _ = pack_context(
        static.to(target.device),
        compressed.to(target.device),
        separator.to(target.device),
        plan,
        backend=target.backend,
    )
    rows = packed.cpu()[plan.kinds == 1].double()
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(len(rows)).double(), rtol=1e-3, atol=0)


@targets("pack_context")
def test_nothing_to_pack(target):
    plan = plan_context(torch.zeros(1, 3).int(), [0, 0], None, 5, 2)
    packed, cu_context = pack_context(
        torch.zeros(0, 4, device=target.device),
        torch.zeros(0, 2, 4, device=target.device),
        torch.zeros(4, device=target.device),
        plan,
        backend=target.backend,
    )
    assert packed.shape == (0, 4)
    assert cu_context.tolist() == [0, 0]


@targets("pack_context")
def test_strides(target):
    plan = make_plan()
    parts = [x.to(target.device) for x in pieces(plan)]
    strided = [x.transpose(0, -1).contiguous().transpose(0, -1) for x in parts]
    got, _ = pack_context(*strided, plan, backend=target.backend)
    torch.testing.assert_close(got, pack_context(*parts, plan)[0], rtol=0, atol=0)


@pytest.mark.parametrize("max_tokens", [None, 9])
def test_gradcheck(max_tokens):
    plan = make_plan(max_tokens=max_tokens)
    parts = [x.requires_grad_() for x in pieces(plan, 3)]
    assert torch.autograd.gradcheck(lambda *p: pack_context(*p, plan)[0], parts)


@targets("pack_context")
def test_autocast_changes_nothing(target):
    plan = make_plan()
    parts = [x.to(target.device, torch.float32) for x in pieces(plan)]
    with torch.autocast(target.device, torch.bfloat16):
        got, _ = pack_context(*parts, plan, backend=target.backend)
    torch.testing.assert_close(got, pack_context(*parts, plan)[0], rtol=0, atol=0)


def test_beyond_32_bit_addresses_on_meta():
    plan = plan_context(torch.full((1, 5000), 10_000).int(), [0, 10_000], 2, 156, 16)
    width = 3584
    assert plan.total_tokens * width > 2**31
    packed, _ = pack_context(
        torch.empty(5000 * 156, width, device="meta"),
        torch.empty(5000, 16, width, device="meta"),
        torch.empty(width, device="meta"),
        plan.to("meta"),
    )
    assert packed.shape == (plan.total_tokens, width)


@pytest.mark.parametrize(
    ("position", "value", "error", "message"),
    [
        (0, torch.ones(3), ValueError, r"static: expected shape \[Ns, D\]"),
        (0, torch.ones(7, 6), ValueError, r"static: expected size 32 in dimension 0 \(plan.cu_sta"),
        (1, torch.ones(7, 2, 5), ValueError, r"compressed: expected size 6 in dimension 2"),
        (1, torch.ones(8, 2, 6), ValueError, r"expected size 7 in dimension 0 \(plan.dynamic"),
        (1, torch.ones(7, 3, 6), ValueError, r"expected size 2 in dimension 1 \(plan.num_queries"),
        (2, torch.ones(5), ValueError, "separator: expected size 6 in dimension 0"),
        (2, [1.0] * 6, TypeError, "separator: expected a floating tensor"),
        (3, {}, TypeError, "plan: expected a ContextPlan, got dict"),
    ],
)
def test_errors(position, value, error, message):
    plan = make_plan()
    arguments = [*pieces(plan), plan]
    assert [len(x) for x in arguments[:3]] == [32, 7, 6]
    arguments[position] = value
    with pytest.raises(error, match=message):
        pack_context(*arguments)

# SPDX-License-Identifier: Apache-2.0
"""Frames with different numbers of compressed tokens, packed by every backend."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from targets import DTYPES, targets
from tolerance import judge

from tdc_kernels import pack_context, plan_context

FRAMES, CUTS, WINDOW, STATIC, K = [7, 4, 3], [[2, 5], [4, 4], [1, 2]], 3, 4, 5
LENGTHS = [5, 1, 2, 3, 4, 5, 3, 2, 1, 5, 4, 3, 2, 1]
TRIMS = [(None, "frames"), (16, "frames"), (16, "window_tail")]


def make_plan(static, max_tokens=None, trim="frames"):
    cu = [0, 7, 11, 14]
    lengths = STATIC if static else None
    return plan_context(
        torch.tensor(CUTS),
        cu,
        WINDOW,
        lengths,
        K,
        max_tokens,
        trim=trim,
        compressed_lengths=LENGTHS,
    )


def pieces(plan, dtype, width=24):
    return [
        torch.randn(int(plan.cu_static[-1]), width).to(dtype),
        (5 * torch.randn(len(plan.dynamic), K, width)).to(dtype),
        torch.randn(width).to(dtype),
    ]


def loop(static, compressed, separator, plan):
    """Window by window without the plan's indices, and cut at the end where the plan is."""
    videos = [[] for _ in FRAMES]
    starts = torch.tensor([0, 7, 11])
    for row, anchor in enumerate(plan.anchors.tolist()):
        first, last = plan.cu_static[row : row + 2].tolist()
        tokens = [*static[first:last], separator] if last > first else []
        for m, frame in enumerate(plan.dynamic.tolist()):
            if plan.dynamic_anchor[m] == row:
                kept = compressed[m, : LENGTHS[frame]]
                tokens += [*F.normalize(kept, dim=-1), separator]
        videos[int((starts <= anchor).sum()) - 1] += tokens
    return torch.stack([token for video in videos for token in video])


def differentiated(function, parts, grad):
    leaves = [x.detach().requires_grad_() for x in parts]
    out = function(*leaves)
    found = torch.autograd.grad(out, leaves, grad.to(out), materialize_grads=True)
    return [x.detach().cpu() for x in (out, *found)]


def on(target, plan):
    plan = plan.to(target.device)
    return lambda *parts: pack_context(
        *(x.to(target.device) for x in parts), plan, backend=target.backend
    )[0]


@targets("pack_context")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("max_tokens", [None, 16])
def test_against_a_loop(target, dtype, static, max_tokens):
    plan = make_plan(static, max_tokens)
    kept = [LENGTHS[f] for f in plan.dynamic.tolist()]
    tokens = int(plan.cu_static[-1]) + sum(kept) + len(plan.dynamic)
    assert plan.total_tokens == tokens + (len(plan.anchors) if static else 0)
    parts, grad = pieces(plan, dtype), torch.randn(plan.total_tokens, 24).to(dtype)
    ours = differentiated(on(target, plan), parts, grad)
    plain = differentiated(lambda *p: loop(*p, plan), parts, grad)
    parts = [x.double() for x in parts]
    exact = differentiated(lambda *p: loop(*p, plan), parts, grad.double())
    if dtype == torch.float64:  # the judge's own precision
        torch.testing.assert_close(ours, exact)
        return
    for trio in zip(ours, plain, exact, strict=True):
        judge(*trio)


@targets("pack_context")
@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize(("max_tokens", "trim"), TRIMS)
def test_rows_that_are_no_tokens(target, static, max_tokens, trim):
    """Nothing reads them, and their gradients are zeros."""
    plan = make_plan(static, max_tokens, trim)
    parts, grad = pieces(plan, torch.float32), torch.randn(plan.total_tokens, 24)
    full = differentiated(on(target, plan), parts, grad)
    dropped = torch.arange(K) >= plan.compressed_lengths[:, None]
    assert dropped.any() and torch.equal(full[2][dropped], torch.zeros(int(dropped.sum()), 24))
    kept = plan.position[len(parts[0]) :].view(-1, K) >= 0
    assert (full[2][kept].abs().amax(-1) > 0).all() and not (kept & dropped).any()
    parts[1] = parts[1].masked_fill(dropped[..., None], math.inf)
    torch.testing.assert_close(on(target, plan)(*parts).cpu(), full[0], rtol=0, atol=0)

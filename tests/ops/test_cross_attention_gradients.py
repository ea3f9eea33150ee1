# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch
from cross_attention_cases import (
    FLOATS,
    HEADS,
    case,
    cast,
    cast_device,
    draw_rows,
    exact,
    plain,
    strategies,
)
from hypothesis import given
from hypothesis import strategies as st
from targets import dtypes, targets
from tolerance import judge

from tdc_kernels import cross_attention, native, registry
from tdc_kernels.ops.cross_attention import strategy


def gradients(function, args, names):
    leaves = [args[n].detach().requires_grad_() for n in names]
    out = function({**args, **dict(zip(names, leaves, strict=True))})
    weigh = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=out.device).view(out.shape)
    found = torch.autograd.grad(out, leaves, weigh, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, leaves, strict=True)]


@targets("cross_attention", slow="triton")
@strategies
@dtypes
@pytest.mark.parametrize("audio_depth", [None, 24])
def test_gradients(target, strategy, dtype, audio_depth):
    """Of every floating argument; rows that share a frame add up, frames nobody asks for get 0."""
    args = cast(case(width=32, depth=40, audio_depth=audio_depth), dtype)
    args["index"] = torch.tensor([0, 2, 2, 0, 2])
    names = [n for n in FLOATS if args.get(n) is not None]

    def op(a):
        return cross_attention(**a, num_heads=HEADS, strategy=strategy, backend=target.backend)

    ours = gradients(op, cast(args, device=target.device), names)
    theirs = gradients(plain, args, names)
    truth = gradients(exact, cast(args, torch.float64), names)
    for name, got, same, true in zip(names, ours, theirs, truth, strict=True):
        assert got.dtype == dtype, name
        if name == "b_key":  # exactly zero, which plain PyTorch has only up to rounding
            assert not got.any() or not registry.entry("cross_attention", target.backend).opaque
        elif dtype == torch.float64:  # as exact as the judge itself
            torch.testing.assert_close(got.cpu(), true, rtol=1e-10, atol=1e-12)
        else:
            judge(got.cpu(), same, true)


@targets("cross_attention", slow="triton")
@given(
    queries=st.integers(1, 3),
    visual=st.integers(0, 4),
    audio=st.none() | st.integers(0, 3),
    kinds=st.sets(st.sampled_from(["visual", "audio", "mask"])),
    strategy=st.sampled_from(["project", "absorb"]),
    data=st.data(),
)
def test_gradients_ragged(target, queries, visual, audio, kinds, strategy, data):
    args = case(3, 3, queries, visual, audio)
    extra = draw_rows(data, args, visual, audio, 3, kinds)
    names = [n for n in FLOATS if args.get(n) is not None and n != "b_key"]

    def op(a):
        rest = cast_device(extra, target.device)
        return cross_attention(
            **a, **rest, num_heads=HEADS, strategy=strategy, backend=target.backend
        )

    ours = gradients(op, cast(args, device=target.device), names)
    truth = gradients(lambda a: exact(a, **extra), args, names)
    for name, got, true in zip(names, ours, truth, strict=True):
        torch.testing.assert_close(got.cpu(), true.nan_to_num(), msg=name)


@targets("cross_attention")
@strategies
@pytest.mark.parametrize("wanted", [["query"], ["w_value"], ["audio", "query"], ["b_value"]])
def test_only_the_gradients_asked_for(target, strategy, wanted):
    """Frozen tokens or weights cost nothing and change nothing."""
    args = cast(case(), torch.float64)

    def op(a):
        return cross_attention(**a, num_heads=HEADS, strategy=strategy, backend=target.backend)

    ours = gradients(op, cast(args, device=target.device), wanted)
    for got, true in zip(ours, gradients(exact, args, wanted), strict=True):
        torch.testing.assert_close(got.cpu(), true)


@pytest.mark.parametrize("audio", [None, 2])
@pytest.mark.parametrize("ragged", [False, True])
def test_gradcheck(audio, ragged):
    args = case(rows=3, frames=3, queries=2, visual=3, audio=audio, width=4, depth=3)
    args["index"] = torch.tensor([0, 2, 2])
    names = [n for n in FLOATS if args.get(n) is not None]
    lengths = {}
    if ragged:  # frame 2 has no token at all
        lengths["visual_lengths"] = torch.tensor([2, 3, 0])
        lengths["audio_lengths"] = torch.tensor([1, 2, 0]) if audio else None

    def op(*floats):
        changed = {**args, **dict(zip(names, floats, strict=True))}
        return cross_attention(**changed, **lengths, num_heads=HEADS)

    assert torch.autograd.gradcheck(op, [args[n].requires_grad_() for n in names])


@targets("cross_attention")
def test_gradients_ignore_what_lies_beyond_the_lengths(target):
    args = cast(case(rows=3, frames=3, indexed=False), torch.float32, target.device)
    args["visual"][:, 4:] = math.nan
    names = [n for n in FLOATS if n in args]
    for name in names:
        args[name] = args[name].detach().requires_grad_()
    lengths = torch.tensor([4, 4, 0], device=target.device)
    cross_attention(
        **args, num_heads=HEADS, visual_lengths=lengths, backend=target.backend
    ).sum().backward()
    for name in names:
        assert args[name].grad.isfinite().all(), name
    assert not args["visual"].grad[:, 4:].any()
    assert args["w_value"].grad.any()


def test_training_absorbs_where_computing_again_pays():
    """Between the two thresholds a call that wants gradients is left to PyTorch."""
    a = cast(case(3, 3, 8, 30, None, width=64, depth=48, indexed=False), torch.float32)
    names = ("query", "visual", "audio", "w_key", "b_key", "w_value", "b_value")
    args = (*(a[n] for n in names), HEADS, *[None] * 6)
    assert strategy.absorbs(*args)
    a["w_key"].requires_grad_()
    assert not strategy.absorbs(*args)
    if native.CPU.why_not() is None:
        assert registry.choose("cross_attention", None, *args, False) == "torch"
        assert registry.choose("cross_attention", None, *args, True) == "native"
    with torch.no_grad():
        assert strategy.absorbs(*args)

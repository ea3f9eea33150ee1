# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from targets import dtypes, targets
from tolerance import judge

from tdc_kernels import cross_attention, registry

HEADS = 2
FLOATS = ("query", "visual", "audio", "w_key", "b_key", "w_value", "b_value")


def case(rows=5, frames=3, queries=4, visual=7, audio=5, width=16, depth=12, indexed=True):
    """Arguments in fp64; the weights scaled as a trained layer's."""
    args = {
        "query": torch.randn(rows, queries, width),
        "visual": torch.randn(frames, visual, depth),
        "audio": torch.randn(frames, audio, depth) if audio is not None else None,
        "w_key": torch.randn(width, depth) / math.sqrt(depth),
        "b_key": torch.randn(width),
        "w_value": torch.randn(width, depth) / math.sqrt(depth),
        "b_value": torch.randn(width),
        "index": torch.randint(frames, (rows,)) if indexed else None,
    }
    return cast(args, torch.float64)


def cast(args, dtype=None, device=None):
    return {
        k: v.to(device, dtype if k in FLOATS else v.dtype) if isinstance(v, torch.Tensor) else v
        for k, v in args.items()
    }


def exact(a, visual_lengths=None, audio_lengths=None):
    """One row and one head at a time over tokens that are really concatenated, in fp64."""
    a = cast(a, torch.float64)
    dim = a["query"].shape[2] // HEADS
    out = torch.zeros_like(a["query"])
    for m in range(len(out)):
        f = m if a["index"] is None else int(a["index"][m])
        tokens = a["visual"][f, : None if visual_lengths is None else int(visual_lengths[f])]
        if a["audio"] is not None:
            sound = a["audio"][f, : None if audio_lengths is None else int(audio_lengths[f])]
            tokens = torch.cat([tokens, sound])
        if len(tokens) == 0:
            continue
        key, value = (F.linear(tokens, a["w_" + n], a["b_" + n]) for n in ("key", "value"))
        for h in range(HEADS):
            part = slice(h * dim, (h + 1) * dim)
            score = a["query"][m, :, part] @ key[:, part].T / math.sqrt(dim)
            out[m, :, part] = score.softmax(1) @ value[:, part]
    return out


def plain(a):
    """What one would write: concatenate, project, gather, scaled_dot_product_attention."""
    tokens = a["visual"] if a["audio"] is None else torch.cat([a["visual"], a["audio"]], 1)

    def heads(x):
        return x.unflatten(2, (HEADS, -1)).transpose(1, 2)

    key, value = (F.linear(tokens, a["w_" + n], a["b_" + n]) for n in ("key", "value"))
    if a["index"] is not None:
        key, value = key[a["index"]], value[a["index"]]
    out = F.scaled_dot_product_attention(heads(a["query"]), heads(key), heads(value))
    return out.transpose(1, 2).flatten(2)


@targets("cross_attention")
@dtypes
@pytest.mark.parametrize("audio", [None, 5])
@pytest.mark.parametrize("indexed", [False, True])
def test_formula(target, dtype, audio, indexed):
    args = case(rows=6 if indexed else 3, audio=audio, width=32, depth=64, indexed=indexed)
    args = cast(args, dtype)
    got = cross_attention(
        **cast(args, device=target.device), num_heads=HEADS, backend=target.backend
    )
    assert got.dtype == dtype
    judge(got.cpu(), plain(args), exact(args))


@targets("cross_attention")
@given(
    rows=st.integers(0, 4),
    frames=st.integers(1, 3),
    queries=st.integers(1, 3),
    visual=st.integers(0, 4),
    audio=st.none() | st.integers(0, 3),
    lengths=st.sampled_from(["none", "visual", "audio", "both"]),
    data=st.data(),
)
def test_ragged(target, rows, frames, queries, visual, audio, lengths, data):
    """Any sizes, zero included; tokens beyond the lengths hold NaN and must not matter."""
    args = case(rows, frames, queries, visual, audio)

    def draw(name, tokens):
        if lengths not in (name, "both") or tokens is None:
            return None
        several = data.draw(st.lists(st.integers(0, tokens), min_size=frames, max_size=frames))
        for f, length in enumerate(several):
            args[name][f, length:] = math.nan
        return torch.tensor(several, dtype=torch.int32)

    lv, la = draw("visual", visual), draw("audio", audio)
    got = cross_attention(
        **cast(args, device=target.device),
        num_heads=HEADS,
        visual_lengths=None if lv is None else lv.to(target.device),
        audio_lengths=None if la is None else la.to(target.device),
        backend=target.backend,
    )
    torch.testing.assert_close(got.cpu(), exact(args, lv, la))


@targets("cross_attention")
def test_row_without_tokens_gives_zeros(target):
    args = cast(case(rows=2, frames=2, audio=None, indexed=False), torch.float32, target.device)
    lengths = torch.tensor([0, 7], device=target.device)
    got = cross_attention(**args, num_heads=HEADS, visual_lengths=lengths, backend=target.backend)
    assert not got[0].any()  # zeros, although b_value is not
    assert got[1].all()


@targets("cross_attention")
def test_bad_frame_reaches_its_own_rows_only(target):
    args = cast(case(), torch.float32)
    args["index"] = torch.tensor([0, 1, 2, 1, 0])
    args["visual"][1, 3, 2] = math.nan
    args["audio"][2, 0, 0] = math.inf
    got = cross_attention(
        **cast(args, device=target.device), num_heads=HEADS, backend=target.backend
    )
    assert got.isfinite().all(2).all(1).tolist() == [True, False, False, False, True]


@targets("cross_attention")
def test_large_scores_do_not_overflow(target):
    args = cast(case(), torch.float16)
    args["query"] *= 200  # scores of some thousand: exp without the maximum would be inf
    got = cross_attention(
        **cast(args, device=target.device), num_heads=HEADS, backend=target.backend
    )
    judge(got.cpu(), plain(args), exact(args))


@targets("cross_attention")
def test_strides(target):
    args = cast(case(rows=3, indexed=False), torch.float32, target.device)
    strided = {
        k: v.transpose(0, -1).contiguous().transpose(0, -1) if k in FLOATS else v
        for k, v in args.items()
    }
    assert not strided["query"].is_contiguous()
    got = cross_attention(**strided, num_heads=HEADS, backend=target.backend)
    wanted = cross_attention(**args, num_heads=HEADS, backend=target.backend)
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("audio", [None, 2])
@pytest.mark.parametrize("ragged", [False, True])
def test_gradcheck(audio, ragged):
    args = case(rows=3, frames=3, queries=2, visual=3, audio=audio, width=4, depth=3)
    args["index"] = torch.tensor([0, 2, 2])
    names = [n for n in FLOATS if args[n] is not None]
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
    for name in FLOATS:
        args[name] = args[name].detach().requires_grad_()
    lengths = torch.tensor([4, 4, 0], device=target.device)
    cross_attention(
        **args, num_heads=HEADS, visual_lengths=lengths, backend=target.backend
    ).sum().backward()
    for name in FLOATS:
        assert args[name].grad.isfinite().all(), name
    assert not args["visual"].grad[:, 4:].any()
    assert args["w_value"].grad.any()


@targets("cross_attention")
def test_autocast(target):
    args = cast(case(), torch.float32, target.device)
    with torch.autocast(target.device, torch.bfloat16):
        got = cross_attention(**args, num_heads=HEADS, backend=target.backend)
        wide = cross_attention(**cast(args, torch.float64), num_heads=HEADS, backend=target.backend)
        mixed = cross_attention(
            **{**args, "query": args["query"].bfloat16()}, num_heads=HEADS, backend=target.backend
        )
    wanted = cross_attention(**cast(args, torch.bfloat16), num_heads=HEADS, backend=target.backend)
    assert got.dtype == mixed.dtype == torch.bfloat16
    assert wide.dtype == torch.float64
    torch.testing.assert_close(got, wanted, rtol=0, atol=0)
    torch.testing.assert_close(mixed, wanted, rtol=0, atol=0)


def test_beyond_32_bit_addresses_on_meta():
    args = {
        "query": torch.empty(2000, 16, 768, device="meta"),
        "visual": torch.empty(4000, 156, 3584, device="meta"),
        "audio": torch.empty(4000, 50, 3584, device="meta"),
        "w_key": torch.empty(768, 3584, device="meta"),
        "b_key": None,
        "w_value": torch.empty(768, 3584, device="meta"),
        "b_value": None,
        "index": torch.empty(2000, dtype=torch.int32, device="meta"),
    }
    assert args["visual"].numel() > 2**31
    assert cross_attention(**args, num_heads=12).shape == (2000, 16, 768)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"query": torch.ones(3, 4)}, ValueError, r"query: expected shape \[M, Q, H\*d\]"),
        ({"visual": None}, TypeError, "visual: expected a floating tensor .* got NoneType"),
        ({"num_heads": 3}, ValueError, "num_heads: expected a divisor of query's width 16, got 3"),
        ({"num_heads": 0}, ValueError, "num_heads: expected an integer >= 1"),
        ({"audio": torch.ones(2, 5, 12)}, ValueError, "audio: expected size 3 in dimension 0"),
        ({"audio": torch.ones(3, 5, 11)}, ValueError, "audio: expected size 12 in dimension 2"),
        ({"w_key": torch.ones(15, 12)}, ValueError, "w_key: expected size 16 in dimension 0"),
        ({"w_value": torch.ones(16, 2)}, ValueError, "w_value: expected size 12 in dimension 1"),
        ({"b_key": torch.ones(3)}, ValueError, "b_key: expected size 16 in dimension 0"),
        ({"b_value": torch.ones(16).double()}, TypeError, "b_value: expected float32 like query"),
        ({"index": None}, ValueError, "query: expected size 3 .*as index is None"),
        ({"index": torch.ones(4).int()}, ValueError, "index: expected size 5 in dimension 0"),
        ({"index": torch.ones(5)}, TypeError, "index: expected an int32 or int64"),
        ({"visual_lengths": torch.ones(2).int()}, ValueError, "visual_lengths: expected size 3"),
        (
            {"audio": None, "audio_lengths": torch.ones(3).int()},
            ValueError,
            "audio_lengths: expected None without audio",
        ),
    ],
)
def test_errors(changed, error, message):
    args = {**cast(case(), torch.float32), "num_heads": HEADS, **changed}
    with pytest.raises(error, match=message):
        cross_attention(**args)


def test_absorbed_weights_are_taken_where_they_pay(monkeypatch):
    """Many tokens, few queries, fp32: ``torch``; half precision or few tokens: ``reference``."""
    asked = []
    for backend in ("torch", "reference"):
        entry = registry.entry("cross_attention", backend)

        def handle(*args, name=backend, real=entry.handle):
            asked.append(name)
            return real(*args)

        monkeypatch.setitem(
            registry._ENTRIES["cross_attention"], backend, replace(entry, handle=handle)
        )
    sizes = {"rows": 3, "frames": 3, "queries": 2, "width": 64, "depth": 48}
    for visual, dtype in ((96, torch.float32), (96, torch.bfloat16), (3, torch.float32)):
        cross_attention(**cast(case(**sizes, visual=visual, audio=None), dtype), num_heads=HEADS)
    assert asked == ["torch", "reference", "reference"]

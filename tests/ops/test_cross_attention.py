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

from tdc_kernels import cross_attention, native, registry
from tdc_kernels.ops.cross_attention import strategy

HEADS = 2
FLOATS = (
    "query",
    "visual",
    "audio",
    "w_key",
    "b_key",
    "w_value",
    "b_value",
    "w_key_audio",
    "w_value_audio",
)
strategies = pytest.mark.parametrize("strategy", ["project", "absorb"])


def case(
    rows=5,
    frames=3,
    queries=4,
    visual=7,
    audio=5,
    width=16,
    depth=12,
    indexed=True,
    audio_depth=None,
):
    """Arguments in fp64; the weights scaled as a trained layer's."""

    def weight(depth):
        return torch.randn(width, depth) / math.sqrt(depth)

    args = {
        "query": torch.randn(rows, queries, width),
        "visual": torch.randn(frames, visual, depth),
        "audio": torch.randn(frames, audio, audio_depth or depth) if audio is not None else None,
        "w_key": weight(depth),
        "b_key": torch.randn(width),
        "w_value": weight(depth),
        "b_value": torch.randn(width),
        "index": torch.randint(frames, (rows,)) if indexed else None,
    }
    if audio is not None and audio_depth is not None:
        args |= {"w_key_audio": weight(audio_depth), "w_value_audio": weight(audio_depth)}
    return cast(args, torch.float64)


def cast(args, dtype=None, device=None):
    return {
        k: v.to(device, dtype if k in FLOATS else v.dtype) if isinstance(v, torch.Tensor) else v
        for k, v in args.items()
    }


def projections(a, tokens, name, audio):
    """Keys or values of some tokens."""
    weight = a.get(f"w_{name}_audio") if audio else None
    return F.linear(tokens, a["w_" + name] if weight is None else weight, a["b_" + name])


def exact(a, visual_lengths=None, audio_lengths=None, mask=None):
    """One row and one head at a time over the tokens that count, in fp64; differentiable."""
    a = cast(a, torch.float64)
    dim = a["query"].shape[2] // HEADS
    rows = []
    for m in range(len(a["query"])):
        f = m if a["index"] is None else int(a["index"][m])
        seen = (
            None
            if mask is None
            else mask[f].split([a["visual"].shape[1], mask.shape[1] - a["visual"].shape[1]])
        )
        found = {"key": [], "value": []}
        for i, (name, lengths) in enumerate((("visual", visual_lengths), ("audio", audio_lengths))):
            if a[name] is None:
                continue
            stop = a[name].shape[1] if lengths is None else int(lengths[f])
            tokens = a[name][f, :stop]
            tokens = tokens if seen is None else tokens[seen[i][:stop]]
            for kind, parts in found.items():
                parts.append(projections(a, tokens, kind, name == "audio"))
        key, value = (torch.cat(parts) for parts in found.values())
        if len(key) == 0:
            rows.append(a["query"][m] * 0)
            continue
        heads = []
        for h in range(HEADS):
            part = slice(h * dim, (h + 1) * dim)
            score = a["query"][m, :, part] @ key[:, part].T / math.sqrt(dim)
            heads.append(score.softmax(1) @ value[:, part])
        rows.append(torch.cat(heads, 1))
    return torch.stack(rows) if rows else a["query"] * 1


def plain(a):
    """What one would write: project, concatenate, gather, scaled_dot_product_attention."""

    def heads(name):
        parts = [projections(a, a["visual"], name, False)]
        parts += [] if a["audio"] is None else [projections(a, a["audio"], name, True)]
        x = torch.cat(parts, 1)
        x = x if a["index"] is None else x[a["index"]]
        return x.unflatten(2, (HEADS, -1)).transpose(1, 2)

    query = a["query"].unflatten(2, (HEADS, -1)).transpose(1, 2)
    out = F.scaled_dot_product_attention(query, heads("key"), heads("value"))
    return out.transpose(1, 2).flatten(2)


@targets("cross_attention")
@dtypes
@strategies
@pytest.mark.parametrize(
    ("audio", "audio_depth", "indexed"),
    [(None, None, False), (5, None, True), (5, 24, True), (5, 24, False)],
)
def test_formula(target, dtype, strategy, audio, audio_depth, indexed):
    args = case(
        rows=6 if indexed else 3,
        audio=audio,
        width=32,
        depth=64,
        indexed=indexed,
        audio_depth=audio_depth,
    )
    args = cast(args, dtype)
    got = cross_attention(
        **cast(args, device=target.device),
        num_heads=HEADS,
        strategy=strategy,
        backend=target.backend,
    )
    assert got.dtype == dtype
    judge(got.cpu(), plain(args), exact(args))


@targets("cross_attention")
@strategies
@pytest.mark.parametrize(
    ("queries", "width", "depth", "visual", "audio"),
    [
        (16, 2 * 64, 3 * 128 + 8, 156, 50),  # the paper's, narrower
        (32, 2 * 64, 176, 257, None),  # BLIP-2's
        (8, 2 * 32, 3584 // 8, 84, 50),
        (3, 2 * 24, 40, 19, 3),  # no size a multiple of anything
    ],
)
def test_sizes(target, strategy, queries, width, depth, visual, audio):
    args = cast(case(3, 2, queries, visual, audio, width, depth), torch.float32)
    args["index"] = torch.tensor([1, 0, 1])
    got = cross_attention(
        **cast(args, device=target.device),
        num_heads=HEADS,
        strategy=strategy,
        backend=target.backend,
    )
    judge(got.cpu(), plain(args), exact(args))


@targets("cross_attention")
@strategies
def test_long_sums(target, strategy):
    """Scores are sums over the tokens' width, the longest there are."""
    args = cast(case(2, 2, 3, 9, None, width=HEADS * 16, depth=7168, indexed=False), torch.float32)
    got = cross_attention(
        **cast(args, device=target.device),
        num_heads=HEADS,
        strategy=strategy,
        backend=target.backend,
    )
    judge(got.cpu(), plain(args), exact(args))


@pytest.mark.parametrize("name", native.INSTRUCTION_SETS)
@strategies
@dtypes
def test_every_instruction_set(name, dtype, strategy, instruction_set):
    """Tokens below, at and beyond a tile, widths below, at and beyond a block and a vector."""
    instruction_set(name)
    for tokens, depth, dim in ((1, 3, 5), (13, 64, 16), (30, 131, 24)):
        args = cast(case(5, 3, 17, tokens, 3, HEADS * dim, depth), dtype)
        got = cross_attention(**args, num_heads=HEADS, strategy=strategy, backend="native")
        judge(got, plain(args), exact(args))


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, torch.ones(3, 2), "query, visual: expected 3 dimensions"),
        (2, torch.ones(2, 5, 12), "audio: expected \\[F, Na, D\\]"),
        (3, torch.ones(16, 11), "weights: expected"),
        (6, torch.ones(15), "b_value: expected query's width"),
        (7, 3, "num_heads: expected a divisor"),
        (8, torch.tensor([0, 1, 2, 3, 0]), "index: expected 0 to 2, got 3"),
        (8, torch.tensor([0, 1]), "index: expected 5 numbers"),
        (9, torch.tensor([8, 0, 0]), "visual_lengths: expected 0 to 7, got 8"),
        (11, torch.ones(3, 11, dtype=torch.bool), "mask: expected bool"),
    ],
)
def test_operator_checks_what_it_would_read(position, value, message):
    """Called past the public function: an error, never memory that is not ours."""
    if native.CPU.why_not() is not None:
        pytest.skip(native.CPU.why_not())
    a = cast(case(), torch.float32)
    names = ("query", "visual", "audio", "w_key", "b_key", "w_value", "b_value")
    args = [*(a[n] for n in names), HEADS, a["index"], *[None] * 5, True]
    args[position] = value
    with pytest.raises(RuntimeError, match=message):
        registry.entry("cross_attention", "native").handle(*args)


@targets("cross_attention")
@strategies
def test_tokens_of_another_dtype(target, strategy):
    """bf16 tokens under fp32 queries and weights are converted as they are read."""
    args = cast(case(), torch.float32)
    for name in ("visual", "audio"):
        args[name] = args[name].bfloat16()
    got = cross_attention(
        **cast_device(args, target.device),
        num_heads=HEADS,
        strategy=strategy,
        backend=target.backend,
    )
    assert got.dtype == torch.float32
    wide = {**args, "visual": args["visual"].float(), "audio": args["audio"].float()}
    judge(got.cpu(), plain(wide), exact(wide))


def cast_device(args, device):
    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in args.items()}


def draw_rows(data, args, visual, audio, frames, kinds):
    """Lengths (tokens beyond them become NaN) and a mask."""

    def lengths(name, tokens):
        if name not in kinds or tokens is None:
            return None
        several = data.draw(st.lists(st.integers(0, tokens), min_size=frames, max_size=frames))
        for f, length in enumerate(several):
            args[name][f, length:] = math.nan
        return torch.tensor(several, dtype=torch.int32)

    mask = None
    if "mask" in kinds:
        mask = torch.rand(frames, visual + (audio or 0)) < 0.6
    return {
        "visual_lengths": lengths("visual", visual),
        "audio_lengths": lengths("audio", audio),
        "mask": mask,
    }


@targets("cross_attention")
@given(
    rows=st.integers(0, 4),
    frames=st.integers(1, 3),
    queries=st.integers(1, 3),
    visual=st.integers(0, 4),
    audio=st.none() | st.integers(0, 3),
    kinds=st.sets(st.sampled_from(["visual", "audio", "mask"])),
    strategy=st.sampled_from(["project", "absorb"]),
    data=st.data(),
)
def test_ragged(target, rows, frames, queries, visual, audio, kinds, strategy, data):
    """Any sizes, zero included; tokens beyond the lengths hold NaN and must not matter."""
    args = case(rows, frames, queries, visual, audio)
    extra = draw_rows(data, args, visual, audio, frames, kinds)
    got = cross_attention(
        **cast(args, device=target.device),
        **cast_device(extra, target.device),
        num_heads=HEADS,
        strategy=strategy,
        backend=target.backend,
    )
    torch.testing.assert_close(got.cpu(), exact(args, **extra))


def gradients(function, args, names):
    leaves = [args[n].detach().requires_grad_() for n in names]
    out = function({**args, **dict(zip(names, leaves, strict=True))})
    weigh = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=out.device).view(out.shape)
    found = torch.autograd.grad(out, leaves, weigh, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, leaves, strict=True)]


@targets("cross_attention")
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


@targets("cross_attention")
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
        ({"mask": torch.ones(3, 12)}, TypeError, r"mask: expected a bool tensor \[F, Nv \+ Na\]"),
        ({"mask": torch.ones(3, 7) > 0}, ValueError, "mask: expected size 12 in dimension 1"),
        ({"w_key_audio": torch.ones(16, 12)}, ValueError, "expected both and audio, or neither"),
        ({"strategy": "both"}, ValueError, "strategy: expected None or one of 'project', 'absorb'"),
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


def test_the_strategy_is_chosen_by_operations(monkeypatch):
    """Many tokens, few queries: absorb. Few tokens, or half types with units for them: project."""
    sizes = {"rows": 3, "frames": 3, "queries": 2, "width": 64, "depth": 48, "audio": None}

    def absorbs(visual, dtype):
        a = cast(case(**sizes, visual=visual), dtype)
        names = ("query", "visual", "audio", "w_key", "b_key", "w_value", "b_value")
        return strategy.absorbs(*(a[n] for n in names), HEADS, a["index"])

    assert absorbs(96, torch.float32)
    assert not absorbs(2, torch.float32)
    monkeypatch.setattr(strategy, "has_matrix_units", lambda: True)
    assert absorbs(96, torch.float32)
    assert not absorbs(96, torch.bfloat16)


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


def test_both_strategies_are_really_taken(monkeypatch):
    """The operator is told which way to go, whoever asked for it."""
    asked = []
    entry = registry.entry("cross_attention", "reference")
    recording = replace(entry, handle=lambda *args: asked.append(args[-1]) or entry.handle(*args))
    monkeypatch.setitem(registry._ENTRIES["cross_attention"], "reference", recording)
    for way in ("absorb", "project"):
        cross_attention(**case(), num_heads=HEADS, strategy=way, backend="reference")
    assert asked == [True, False]


@targets("cross_attention")
@strategies
def test_large_scores_either_way(target, strategy):
    """The softmax of both ways takes the maximum off: in fp64, exp of 710 is inf."""
    args = case()
    args["query"] *= 2000
    got = cross_attention(
        **cast(args, device=target.device),
        num_heads=HEADS,
        strategy=strategy,
        backend=target.backend,
    )
    torch.testing.assert_close(got.cpu(), exact(args))

# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from dataclasses import replace

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


@targets("cross_attention", slow="triton")
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

# SPDX-License-Identifier: Apache-2.0
"""The planner against a token-by-token restatement with Python lists."""

from __future__ import annotations

import logging
import math
from itertools import chain

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tdc_kernels import context_length, plan_context


def naive_windows(boundaries, length, window):
    """Frames of every window of one video."""
    if length == 0:
        return []
    starts = sorted({0, *(b for b in boundaries if 0 < b < length)})
    windows = []
    for first, last in zip(starts, [*starts[1:], length], strict=True):
        frames = list(range(first, last))
        size = window or len(frames)
        windows += [frames[i : i + size] for i in range(0, len(frames), size)]
    return windows


def tokens_of(windows, static, k):
    """Every window as a list of tokens: ("static", frame, i), ("compressed", frame, i), "sep".
    ``k``: compressed tokens of every frame, or of each."""
    out = []
    for frames in windows:
        tokens = []
        for n, frame in enumerate(frames):
            if n == 0 and static is not None:
                tokens += [("static", frame, i) for i in range(static)]
            else:
                tokens += [
                    ("compressed", frame, i) for i in range(k if isinstance(k, int) else k[frame])
                ]
            tokens.append("sep")
        out.append(tokens)
    return out


def joined(lists):
    return list(chain.from_iterable(lists))


def naive_frames(windows, static, k, room):
    """trim="frames" as its documentation words it, one step at a time."""
    windows = [list(frames) for frames in windows]
    least = 1 if static is not None else 0

    def size():
        return sum(map(len, tokens_of(windows, static, k)))

    while size() > room and any(len(w) > least for w in windows):
        most = max(len(w) for w in windows)
        last = max(i for i, w in enumerate(windows) if len(w) == most)
        windows[last].pop()
    if static is None and not any(windows):
        windows[0] = [0]
    if size() > room:
        for kept in range(len(windows), 0, -1):
            spaced = [windows[i * len(windows) // kept] for i in range(kept)]
            if kept == 1 or sum(map(len, tokens_of(spaced, static, k))) <= room:
                windows = spaced
                break
    return joined(tokens_of(windows, static, k))[:room]


def naive_window_tail(windows, static, k, room):
    """The released code."""
    tokens = tokens_of(windows, static, k)
    cut = math.ceil((sum(map(len, tokens)) - room) / len(tokens))
    return joined(w[:-cut] for w in tokens)[:room]


def read_back(plan, start_of_video):
    """The plan's tokens per video, in the same words."""
    rows = []
    for a, anchor in enumerate(plan.anchors.tolist()):
        length = int(plan.cu_static[a + 1] - plan.cu_static[a])
        rows += [("static", anchor, i) for i in range(length)]
    for frame in plan.dynamic.tolist():
        rows += [("compressed", frame, i) for i in range(plan.num_queries)]
    rows.append("sep")
    out = []
    cu = plan.cu_context.tolist()
    for b, start in enumerate(start_of_video):
        tokens = [rows[i] for i in plan.source[cu[b] : cu[b + 1]].tolist()]
        out.append([t if t == "sep" else (t[0], t[1] - start, t[2]) for t in tokens])
    return out


@st.composite
def problems(draw):
    lengths = draw(st.lists(st.integers(0, 14), min_size=1, max_size=3))
    width = draw(st.integers(0, 5))
    rows = [
        sorted(draw(st.lists(st.integers(min(1, n), n), min_size=width, max_size=width)))
        for n in lengths
    ]
    return {
        "lengths": lengths,
        "boundaries": rows,
        "window": draw(st.none() | st.integers(1, 5)),
        "static": draw(st.none() | st.integers(1, 6)),
        "k": (k := draw(st.integers(1, 3))),
        "ragged": draw(st.none() | st.lists(st.integers(1, k), min_size=42, max_size=42)),
        "room": draw(st.none() | st.integers(1, 60)),
        "trim": draw(st.sampled_from(["frames", "window_tail"])),
    }


@given(problem=problems())
def test_against_lists(problem):
    lengths, static, k, room = (problem[n] for n in ("lengths", "static", "k", "room"))
    cu = [0]
    for n in lengths:
        cu.append(cu[-1] + n)
    arguments = (
        torch.tensor(problem["boundaries"], dtype=torch.int32).view(len(lengths), -1),
        torch.tensor(cu, dtype=torch.int32),
        problem["window"],
        static,
        k,
        room,
    )
    ragged = problem["ragged"] and problem["ragged"][: cu[-1]]
    options = {"trim": problem["trim"], "compressed_lengths": ragged}
    plan = plan_context(*arguments, **options)

    wanted, trimmed = [], []
    for row, n, start in zip(problem["boundaries"], lengths, cu, strict=False):
        k = ragged[start : start + n] if ragged is not None else problem["k"]
        windows = naive_windows(row, n, problem["window"])
        tokens = joined(tokens_of(windows, static, k))
        full = len(tokens)
        if room is not None and full > room:
            trim = naive_frames if problem["trim"] == "frames" else naive_window_tail
            tokens = trim(windows, static, k, room)
        wanted.append(tokens)
        trimmed.append(full - len(tokens))
    assert read_back(plan, cu[:-1]) == wanted
    assert plan.trimmed.tolist() == trimmed
    assert context_length(*arguments, **options).tolist() == list(map(len, wanted))

    # No frame is encoded for nothing, and every row of the pieces is in time order.
    compressed = {
        t[1] + s for s, v in zip(cu, wanted, strict=False) for t in v if t[0] == "compressed"
    }
    assert plan.dynamic.tolist() == sorted(compressed)
    assert plan.anchors.tolist() == sorted(set(plan.anchors.tolist()))
    tensors = [x for x in vars(plan).values() if isinstance(x, torch.Tensor)]
    assert len(tensors) == 9 + (ragged is not None)
    if ragged is not None:
        kept = [ragged[frame] for frame in plan.dynamic.tolist()]
        assert plan.compressed_lengths.tolist() == kept
    assert all(x.dtype == torch.int32 for x in tensors)
    for frame, anchor in zip(plan.dynamic.tolist(), plan.dynamic_anchor.tolist(), strict=True):
        window = problem["window"] or max(lengths)
        assert 0 <= frame - int(plan.anchors[anchor]) < window
        assert not any(int(plan.anchors[anchor]) < a <= frame for a in plan.anchors.tolist())
    assert len(plan.anchors) == 0 or len(plan.cu_static) == len(plan.anchors) + 1
    words = {"s": 0, "c": 1}
    kinds = [2 if t == "sep" else words[t[0][0]] for video in wanted for t in video]
    assert plan.kinds.tolist() == kinds
    assert plan.total_tokens == len(kinds)
    check_way_back(plan)


def check_way_back(plan):
    """``position`` and ``separators`` undo ``source``, which repeats no row but the separator."""
    rows = int(plan.cu_static[-1]) + len(plan.dynamic) * plan.num_queries
    position = [-1] * rows
    separators = []
    for token, row in enumerate(plan.source.tolist()):
        if row == rows:
            separators.append(token)
        else:
            assert position[row] == -1
            position[row] = token
    assert plan.position.tolist() == position
    assert plan.separators.tolist() == separators


@given(problem=problems(), cuts=st.randoms(use_true_random=False))
def test_length_before_the_boundaries_are_known(problem, cuts):
    """A number of boundaries in place of boundaries: never too small, exact where promised."""
    count = len(problem["boundaries"][0])
    for n in problem["lengths"]:
        scenes = min(count + 1, n)
        starts = sorted(cuts.sample(range(1, n), scenes - 1)) if n else []
        row = starts + [n] * (count - len(starts))
        rest = (problem["window"], problem["static"], problem["k"], problem["room"])
        true = context_length(torch.tensor([row]).int(), [0, n], *rest, trim=problem["trim"])
        bound = context_length(count, [0, n], *rest, trim=problem["trim"])
        assert bound >= true
        full = context_length(torch.tensor([row]).int(), [0, n], *rest[:3])
        untrimmed = problem["room"] is None or full <= problem["room"]
        if problem["trim"] == "frames" or untrimmed:
            known = problem["window"] is None or problem["static"] is None or n <= count + 1
            assert not known or bound == true


def test_bound_is_reached():
    """9 frames, 2 cuts, windows of 3: scenes of 1, 1 and 7 give 5 anchors, no cuts give more."""
    lengths = [
        int(context_length(torch.tensor([[a, b]]), [0, 9], 3, 5, 1))
        for a in range(1, 8)
        for b in range(a + 1, 9)
    ]
    assert max(lengths) == int(context_length(2, [0, 9], 3, 5, 1)) == 5 * 6 + 4 * 2
    # Static frames cheaper than compressed ones: now the fewest anchors cost most.
    lengths = [
        int(context_length(torch.tensor([[a, b]]), [0, 9], 3, 1, 4))
        for a in range(1, 8)
        for b in range(a + 1, 9)
    ]
    assert max(lengths) == int(context_length(2, [0, 9], 3, 1, 4)) == 3 * 2 + 6 * 5


def test_static_lengths_per_video_and_per_frame():
    boundaries = torch.tensor([[2], [1]])
    by_video = plan_context(boundaries, [0, 4, 6], None, [3, 5], 1)
    assert by_video.cu_static.tolist() == [0, 3, 6, 11, 16]
    by_frame = plan_context(boundaries, [0, 4, 6], None, torch.tensor([3, 9, 4, 9, 5, 6]), 1)
    assert by_frame.cu_static.tolist() == [0, 3, 7, 12, 18]
    limits = plan_context(boundaries, [0, 4, 6], None, [3, 5], 1, [9, 1000])
    assert limits.cu_context.tolist() == [0, 8, 20]


def test_evenly_spaced_windows_when_static_frames_are_too_many(caplog):
    with caplog.at_level(logging.WARNING):
        plan = plan_context(torch.zeros(1, 0).int(), [0, 40], 4, 9, 2, 35)
    assert plan.anchors.tolist() == [0, 12, 24]  # windows 0, 3 and 6 of 10
    assert plan.dynamic.tolist() == []
    assert plan.cu_context.tolist() == [0, 30]
    assert caplog.messages == [
        "video 1 of 1: 160 of 190 context tokens were cut to fit max_tokens=35 (trim=frames)"
    ]


def test_limits_below_one_frame_cut_its_end():
    boundaries = torch.tensor([[2, 4]])
    static = plan_context(boundaries, [0, 6], None, 9, 2, 7)
    assert static.anchors.tolist() == [0]
    assert static.source.tolist() == [0, 1, 2, 3, 4, 5, 6]
    compressed = plan_context(boundaries, [0, 6], None, None, 3, 2)
    assert compressed.dynamic.tolist() == [0]
    assert compressed.source.tolist() == [0, 1]
    assert static.trimmed.tolist() == [3 * 10 + 3 * 3 - 7]
    assert compressed.trimmed.tolist() == [6 * 4 - 2]


def test_no_warning_without_trimming_or_from_context_length(caplog):
    plan_context(torch.zeros(1, 0).int(), [0, 40], 4, 9, 2)
    context_length(torch.zeros(1, 0).int(), [0, 40], 4, 9, 2, 35)
    assert caplog.messages == []


def test_long_video_is_trimmed_evenly():
    """An hour at 1 frame/s, 450 windows, trimmed: every window gives up the same share."""
    boundaries = torch.arange(8, 3600, 8)[None]
    plan = plan_context(boundaries, [0, 3600], 8, 156, 16, 90_000)
    assert 90_000 - 17 < plan.total_tokens <= 90_000
    # Evenly trimmed: a window has no more than one compressed frame more than another.
    per_window = torch.bincount(plan.dynamic_anchor, minlength=len(plan.anchors))
    assert int(per_window.max() - per_window.min()) <= 1


def test_some_rows_of_a_frame_by_hand():
    """Two scenes; frames 1, 2 and 4 are compressed to 2, 1 and 3 rows of three."""
    arguments = torch.tensor([[3]]), [0, 5], None, 1, 3
    lengths = [3, 2, 1, 3, 3]  # those of the static frames 0 and 3 are not read
    plan = plan_context(*arguments, compressed_lengths=torch.tensor(lengths))
    assert plan.num_queries == 3 and plan.compressed_lengths.tolist() == [2, 1, 3]
    # Rows: 0 and 1 static, 2 to 4, 5 to 7 and 8 to 10 compressed, 11 the separator.
    assert plan.source.tolist() == [0, 11, 2, 3, 11, 5, 11, 1, 11, 8, 9, 10, 11]
    assert plan.position.tolist() == [0, 7, 2, 3, -1, 5, -1, -1, 9, 10, 11]
    assert plan.cu_context.tolist() == [0, 13] and plan.trimmed.tolist() == [0]
    # Its last frame is the last one of the window that has most left: frame 2, of two tokens.
    fewer = plan_context(*arguments, 11, compressed_lengths=lengths)
    assert fewer.dynamic.tolist() == [1, 4] and fewer.compressed_lengths.tolist() == [2, 3]
    assert fewer.trimmed.tolist() == [2]
    assert context_length(*arguments, 11, compressed_lengths=lengths).tolist() == [11]
    # That frees 2 tokens; a third one takes the last frame of the later of two equal windows.
    fewest = plan_context(*arguments, 10, compressed_lengths=lengths)
    assert fewest.dynamic.tolist() == [1] and fewest.trimmed.tolist() == [2 + 4]


def test_to_moves_every_tensor():
    plan = plan_context(torch.tensor([[2]]), [0, 4], None, 3, 1).to("meta")
    assert plan.source.is_meta and plan.cu_context.is_meta and plan.anchors.is_meta
    assert plan.num_queries == 1 and plan.compressed_lengths is None
    ragged = plan_context(torch.tensor([[2]]), [0, 4], None, 3, 2, compressed_lengths=[1] * 4)
    assert ragged.to("meta").compressed_lengths.is_meta


OK = (torch.tensor([[2]]), [0, 4], None, 3, 1)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({0: [[2]]}, TypeError, r"boundaries: expected an integer tensor \[B, S\], got list"),
        ({0: torch.tensor([[2.0]])}, TypeError, "boundaries: expected an integer tensor"),
        ({0: torch.tensor([2])}, ValueError, r"boundaries: expected \[B, S\] with B = 1"),
        ({0: torch.tensor([[2], [2]])}, ValueError, r"B = 1 \(cu_frames\), got \[2, 1\]"),
        ({0: torch.tensor([[5]])}, ValueError, "boundaries: expected frames 1 to 3 of video 0"),
        ({0: torch.tensor([[-1]])}, ValueError, "as padding\\), got -1"),
        ({1: None}, ValueError, r"cu_frames: expected prefix sums \[B\+1\] .* got None"),
        ({1: [1, 4]}, ValueError, "cu_frames: expected rising prefix sums"),
        ({1: [0, 4, 3]}, ValueError, "cu_frames: expected rising prefix sums"),
        ({1: torch.tensor([0.0, 4.0])}, TypeError, "cu_frames: expected integers"),
        ({1: 4}, TypeError, "cu_frames: expected integers, got int"),
        ({2: 0}, ValueError, "window: expected an integer >= 1, got 0"),
        ({2: 2.5}, TypeError, "window: expected an integer >= 1, got float"),
        ({3: 0}, ValueError, "static_lengths: expected an integer >= 1, got 0"),
        (
            {3: [3, 3]},
            ValueError,
            r"static_lengths: expected one number or 4 \(one per frame\) or 1",
        ),
        ({4: 0}, ValueError, "num_queries: expected an integer >= 1, got 0"),
    ],
)
def test_errors(changed, error, message):
    arguments = [changed.get(i, x) for i, x in enumerate(OK)]
    with pytest.raises(error, match=message):
        plan_context(*arguments)
    with pytest.raises(error, match=message):
        context_length(*arguments)


@pytest.mark.parametrize("value", [0, -3, [5, 0]])
def test_max_tokens_must_be_positive(value):
    with pytest.raises(ValueError, match="max_tokens: expected an integer >= 1"):
        plan_context(torch.tensor([[2], [1]]), [0, 4, 6], None, 3, 1, value)


@pytest.mark.parametrize(
    ("lengths", "error", "message"),
    [
        ([1, 1, 1], ValueError, r"compressed_lengths: expected 4 numbers \(one per frame\), got 3"),
        ([1, 0, 1, 1], ValueError, r"expected integers from 1 to 2 \(num_queries\), got 0"),
        ([1, 1, 3, 1], ValueError, r"expected integers from 1 to 2 \(num_queries\), got 3"),
        (1, TypeError, "compressed_lengths: expected integers, got int"),
        (torch.ones(4), TypeError, "compressed_lengths: expected integers"),
    ],
)
def test_compressed_lengths_are_checked(lengths, error, message):
    arguments = torch.tensor([[2]]), [0, 4], None, 3, 2
    for function in (plan_context, context_length):
        with pytest.raises(error, match=message) as found:
            function(*arguments, compressed_lengths=lengths)
        assert "\n" not in str(found.value)


def test_other_errors():
    with pytest.raises(ValueError, match="trim: expected one of frames, window_tail, got 'tail'"):
        plan_context(*OK, 5, trim="tail")
    with pytest.raises(ValueError, match="max_tokens: expected one number or 1"):
        plan_context(*OK, [5, 5])
    with pytest.raises(ValueError, match="boundaries: expected a number >= 0, got -1"):
        context_length(-1, *OK[1:])
    with pytest.raises(ValueError, match="compressed_lengths: expected None with a number of bou"):
        context_length(1, *OK[1:], compressed_lengths=[1] * 4)
    with pytest.raises(ValueError, match="more than int32 counts"):
        plan_context(torch.zeros(1, 0).int(), [0, 3], 1, 2**30, 1)

# SPDX-License-Identifier: Apache-2.0
"""Frame numbers, lengths and prefix sums that are none: refused where they are at hand, and no
kernel touches memory outside of its tensors because of them."""

from __future__ import annotations

import faulthandler
import os
import signal
from dataclasses import replace

import guarded
import pytest
import samples
import torch

import tdc_kernels as tk
from tdc_kernels import registry

ROWS = [(r.op, r.backend) for r in registry.table("cpu") if r.available]
every = pytest.mark.parametrize(("op", "backend"), ROWS)


def of(op):
    return pytest.mark.parametrize("backend", [b for o, b in ROWS if o == op])


# ---------------------------------------------------------------- public functions on the CPU

SUMS = {
    "beyond": [0, 5, 22],
    "short": [0, 5, 20],
    "late": [1, 5, 21],
    "negative": [-1, 5, 21],
    "falling": [0, 25, 21],
}


@pytest.mark.parametrize(
    ("op", "backend"), [r for r in ROWS if r[0] in ("frame_similarity", "scene_boundaries")]
)
@pytest.mark.parametrize("sums", SUMS.values(), ids=SUMS)
def test_prefix_sums(op, backend, sums):
    x = torch.randn(21, 4) if op == "frame_similarity" else torch.randn(20)
    more = () if op == "frame_similarity" else (3,)
    with pytest.raises(ValueError, match="cu_frames: expected prefix sums from 0 to 21"):
        samples.public(op)(x, *more, torch.tensor(sums), backend=backend)


@of("anchor_queries")
@pytest.mark.parametrize("wrong", [-1, 4, 2**31 - 1])
def test_anchors(backend, wrong):
    with pytest.raises(ValueError, match="index: expected numbers from 0 to 3, got"):
        tk.anchor_queries(torch.randn(4, 5, 6), 2, index=torch.tensor([1, wrong]), backend=backend)


@of("cross_attention")
@pytest.mark.parametrize(
    ("position", "name", "most"),
    [(8, "index", 3), (9, "visual_lengths", 9), (10, "audio_lengths", 11)],
)
@pytest.mark.parametrize("below", [True, False])
def test_rows_and_lengths(backend, position, name, most, below):
    args = list(samples.arguments("cross_attention", 1, packed=True))
    wrong = args[position].clone()
    wrong[0] = -1 if below else most + 1
    args[position] = wrong
    with pytest.raises(ValueError, match=f"^{name}: expected numbers from 0 to {most}, got"):
        samples.public("cross_attention")(*args, backend=backend)


@of("pack_context")
@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("source", 0, 49), ("position", -1, 53), ("separators", 0, 53)],
)
def test_plans(backend, name, low, high):
    *pieces, plan = samples.arguments("pack_context", 1, packed=True)
    for wrong in (low - 1, high + 10**6):
        numbers = getattr(plan, name).clone()
        numbers[3] = wrong
        with pytest.raises(ValueError, match=f"plan.{name}: expected numbers from {low} to"):
            tk.pack_context(*pieces, replace(plan, **{name: numbers}), backend=backend)


# ---------------------------------------------------------------- kernels

WILD = {
    torch.int32: [-(2**31), 2**31 - 1, -1, 10**6],
    torch.int64: [-(2**63), 2**63 - 1, -1, 2**32 + 1],
}


def wild(x):
    """Integers of all kinds that are none, some good ones among them."""
    if not isinstance(x, torch.Tensor) or x.dtype not in WILD:
        return x
    bad = torch.tensor(WILD[x.dtype], dtype=x.dtype).repeat(-(-x.shape[0] // 4))[: x.shape[0]]
    return torch.where(torch.arange(x.shape[0]) % 3 == 1, x, bad)


def attempt(op, backend, at_end):
    """The operator and its gradient with wild numbers, all between pages that nobody may touch."""
    torch.manual_seed(0)
    good = samples.operator_arguments(op, 1, packed=True)
    entry = registry.entry(op, backend)
    args = [guarded.guarded(wild(x), at_end) for x in good]
    out = entry.handle(*args)
    out = out if isinstance(out, tuple) else (out,)
    if entry.backward is None:
        return
    grad = guarded.guarded(torch.randn(out[0].shape, dtype=out[0].dtype), at_end)
    if op == "frame_similarity":
        back = (grad, args[0], guarded.guarded(out[1], at_end), args[1])
    elif op == "anchor_queries":
        back = (grad, good[0].shape[0], good[0].shape[1], args[2], torch.bfloat16)
        back = (grad.float(), *back[1:4], torch.float32)
    elif op == "pack_context":
        back = (grad, args[1], *args[4:], True, True, True)
    else:
        back = (grad, *args, True, True)
    entry.backward(*back)


def patched(monkeypatch, at_end):
    """What Triton's launches allocate, between such pages too."""

    def new(x, *size, dtype=None, device=None):
        shape = size[0] if len(size) == 1 and not isinstance(size[0], int) else size
        return guarded.empty(tuple(shape), dtype or x.dtype, at_end)

    monkeypatch.setattr(torch.Tensor, "new_empty", new)
    monkeypatch.setattr(torch, "empty_like", lambda x, dtype=None: new(x, x.shape, dtype=dtype))


KERNELS = [r for r in ROWS if r[1] in ("triton", "cuda")]


@pytest.mark.parametrize(
    ("op", "backend"),
    [pytest.param(*r, marks=[pytest.mark.slow] * (r[1] == "triton")) for r in KERNELS],
)
@pytest.mark.parametrize("at_end", [True, False], ids=["behind", "before"])
def test_kernels_touch_nothing_outside(op, backend, at_end, monkeypatch):
    """In a process of its own, which an access outside would end."""
    if backend == "triton":
        patched(monkeypatch, at_end)
    child = os.fork()
    if child == 0:
        try:
            attempt(op, backend, at_end)
        except BaseException as error:
            print(error, flush=True)
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == 0, signal.Signals(-status).name if status < 0 else "an error"


def test_guarded_pages_are_guarded():
    for at_end, step in ((True, 4), (False, -4)):
        x = guarded.empty((5,), torch.float32, at_end)
        child = os.fork()
        if child == 0:
            faulthandler.disable()  # the fault is wanted
            last = x.data_ptr() + (16 if at_end else 0)
            guarded.ctypes.c_float.from_address(last).value  # noqa: B018
            guarded.ctypes.c_float.from_address(last + step).value  # noqa: B018
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGSEGV


NATIVE = [op for op, backend in ROWS if backend == "native"]


@pytest.mark.parametrize("op", NATIVE)
def test_native_operator_refuses(op):
    args = samples.operator_arguments(op, 1, packed=True)
    entry = registry.entry(op, "native")
    for i, x in enumerate(args):
        if isinstance(x, torch.Tensor) and x.dtype in WILD and (op, i) not in UNREAD:
            with pytest.raises(RuntimeError, match="expected"):
                entry.handle(*args[:i], wild(x), *args[i + 1 :])


UNREAD = {("pack_context", 4), ("pack_context", 5)}  # the way back


@pytest.mark.parametrize(
    ("op", "backend"), [r for r in KERNELS if r[0] in ("scene_boundaries", "segment_scenes")]
)
@pytest.mark.parametrize("cu", [[0, 4, 9], [3, 7, 12], [2, 2, 9]])
def test_frames_of_no_video_count_for_none(op, backend, cu):
    """On a GPU nobody looks at the sums: frames before the first and behind the last video are
    those of no video, and all others are as without them."""
    x = torch.randn(12, 5)
    pairs = tk.frame_similarity(x, backend="reference")
    given = x if op == "segment_scenes" else pairs
    first, last = cu[0], cu[-1]
    wanted = tk.scene_boundaries(pairs[first : last - 1], 3, torch.tensor(cu) - first)
    out = registry.entry(op, backend).handle(given, 3, torch.tensor(cu, dtype=torch.int32))
    got = out[2] if op == "segment_scenes" else out
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_frame_that_is_not_there_is_the_nearest(backend):
    if ("anchor_queries", backend) not in ROWS:
        pytest.skip(f"{backend} does not run here")
    x = torch.randn(4, 6, 5)
    wrong, right = torch.tensor([-7, 9, 2**40]), torch.tensor([0, 3, 3])
    handle = registry.entry("anchor_queries", backend).handle
    assert torch.equal(handle(x, 2, wrong), handle(x, 2, right))
    args = list(samples.operator_arguments("cross_attention", 1, packed=True))
    frames = args[1].shape[0]
    args[8] = torch.randint(-3, frames + 3, args[8].shape)
    args[9] = torch.randint(-3, args[1].shape[1] + 3, args[9].shape)
    good = list(args)
    good[8], good[9] = args[8].clamp(0, frames - 1), args[9].clamp(0, args[1].shape[1])
    entry = registry.entry("cross_attention", backend)
    assert torch.equal(entry.handle(*args), entry.handle(*good))
    grad = torch.randn(args[0].shape)
    got, wanted = (entry.backward(grad, *a, True, True) for a in (args, good))
    torch.testing.assert_close(got, wanted, rtol=0, atol=0)


@pytest.mark.gpu
def test_values_on_a_gpu_are_checked_where_asked_for(monkeypatch):
    x, index = torch.randn(4, 5, 6, device="cuda"), torch.tensor([1, 4], device="cuda")
    tk.anchor_queries(x, 2, index=index)
    monkeypatch.setattr(tk._checks, "CHECK_VALUES", True)
    with pytest.raises(ValueError, match="index: expected numbers from 0 to 3, got 1 to 4"):
        tk.anchor_queries(x, 2, index=index)

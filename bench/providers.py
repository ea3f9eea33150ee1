# SPDX-License-Identifier: Apache-2.0
"""The providers of a case, compared with the reference before anybody is timed."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from tdc_kernels import registry

from .benchmark import Case, Op, Refused
from .peers import sdpa_backends
from .timing import timers

MEMORY = 12e9  # bytes on the CPU; on a GPU four fifths of what is free
SLOW_S = 1.0  # a provider whose matrix products alone would take longer per call is left out
COMPILE_MODES = {"compile": "default", "compile-max-autotune": "max-autotune"}
# What rests on torch's matrix products, and is as slow as they are.
ATTENTION = {"sdpa", "sdpa-math", *sdpa_backends.KERNELS, "flex"}
ON_TORCH = {"release", "eager", *ATTENTION, *COMPILE_MODES, "torch", "reference"}
# Who may turn out not to support a case; of the others an error is one.
MAY_DECLINE = {*COMPILE_MODES, *sdpa_backends.KERNELS, "flex"}

# Largest error as a share of the largest value of the reference, itself in fp32. fp32: eager's dot
# product of two frames (900,000 values) was seen off by 1.5e-5. Half precision: eight roundings of
# 2^-8 in a row, as the authors' chain of operations and its gradient have (seen: 1.6 %). Whoever
# computes something else is off by far more; the tests of the ops hold the sharp bounds.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2**-5}

Call = Callable[..., Any]
Rates = Mapping[torch.dtype, float]


@dataclass
class Prepared:
    """What takes turns, on which arguments, and who does not and why."""

    args: tuple[Any, ...]
    calls: dict[str, Call] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    automatic: str = ""  # our backend that a call without a name takes

    def samplers(self, device: str) -> dict[str, timers.Sampler]:
        copies = timers.copies(self.args, device)
        return {name: timers.sampler(call, copies, device) for name, call in self.calls.items()}


def backends(name: str, device: str) -> list[str]:
    """Ours that can run here; Triton's interpreter and CUDA's stand-in on the CPU are for tests."""
    return [
        row.backend
        for row in registry.table(device)
        if row.op == name and row.available
        if device != "cpu" or row.backend not in ("triton", "cuda")
    ]


def prepare(
    op: Op,
    case: Case,
    device: str,
    matmul: Rates | None = None,
    wanted: Collection[str] | None = None,
) -> Prepared:
    """Build the inputs, run every provider once and compare its output.

    Args:
        matmul: operations per second of matrix products, to leave out what would take too long;
            None: nothing is left out.
        wanted: names of the peers to run beside ours; None: all.

    Raises:
        Refused: an output differs from the reference's.
    """
    args = op.arguments(case, device)
    if case.backward:
        for i in op.wrt:
            args[i].requires_grad_()
    prepared = Prepared(args)
    expected = _expected(op, case, args)
    for name, call in _candidates(op, case, device).items():
        if wanted is not None and name not in wanted and name not in registry.backends():
            continue
        reason = _unaffordable(op, case, name, args, matmul)
        step = _step(op, case, name, call)
        if reason is None:
            reason = _check(op, case, name, step, args, expected)
        if reason is None:
            prepared.calls[name] = step
        else:
            prepared.skipped[name] = reason
    prepared.automatic = _automatic(op, args)
    return prepared


def _candidates(op: Op, case: Case, device: str) -> dict[str, Call]:
    peers = dict(op.peers(case))
    fusible = peers.pop("compile", peers["eager"])
    if device == "cuda" and "sdpa" in peers:  # on the CPU there is one kernel, and "sdpa" takes it
        peers |= sdpa_backends.PEERS
    torch._dynamo.reset()  # one compilation per case, none recompiled for lengths seen before
    for name, mode in COMPILE_MODES.items():
        if device == "cuda" and mode == "max-autotune":
            mode += "-no-cudagraphs"  # graphs are captured here, for all providers alike
        peers[name] = torch.compile(fusible, mode=mode, dynamic=False)
    ours = {name: partial(op.ours, backend=name) for name in backends(op.name, device)}
    return peers | ours


def _step(op: Op, case: Case, name: str, call: Call) -> Call:
    """What is timed: the call, or the call and its gradient."""
    if not case.backward:
        return call
    cotangent: list[Tensor] = []  # made on the first call: filling it is not part of the work

    def forward_and_backward(*args: Any) -> tuple[Tensor, ...]:
        out = next(x for x in _outputs(call(*args)) if x.is_floating_point())
        if not cotangent:
            like = torch.ones_like(out)
            weigh = op.cotangent
            cotangent.append(like if weigh is None else weigh(case, name, out.detach()))
        return torch.autograd.grad(out, [args[i] for i in op.wrt], cotangent[0])

    return forward_and_backward


def _expected(op: Op, case: Case, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """The reference's outputs (or gradients), from half-precision arguments taken to fp32."""
    if op.expected is not None:
        return _outputs(_step(op, case, "reference", op.expected)(*args))
    wide = [
        a.detach().float().requires_grad_(a.requires_grad)
        if isinstance(a, Tensor) and a.is_floating_point()
        else a
        for a in args
    ]
    reference = partial(op.ours, backend="reference")
    return _outputs(_step(op, case, "reference", reference)(*wide))


def _outputs(out: Any) -> tuple[Tensor, ...]:
    return (out,) if isinstance(out, Tensor) else tuple(out)


def _unaffordable(
    op: Op, case: Case, name: str, args: tuple[Any, ...], matmul: Rates | None
) -> str | None:
    device = next(a for a in args if isinstance(a, Tensor)).device
    room = 0.8 * torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else MEMORY
    usual = op.workspace.get("sdpa", 0) if name in sdpa_backends.KERNELS else 0
    needed = timers.size(args) * (1 + op.workspace.get(name, usual))
    if needed > room:
        return f"would need {needed / 1e9:.0f} GB of memory, allowed are {room / 1e9:.0f}"
    if matmul is not None and name in ON_TORCH:
        rate = matmul[case.dtype]
        seconds = op.cost(case).matmul_flops / rate
        if seconds > SLOW_S:
            return f"{case.dtype_name} matrix products reach only {rate / 1e9:.1f} GFLOP/s here"
    return None


def _check(
    op: Op,
    case: Case,
    name: str,
    step: Call,
    args: tuple[Any, ...],
    expected: tuple[Tensor, ...],
) -> str | None:
    """Run once. The reason not to time it, or None."""
    try:
        got = _outputs(step(*args))
    except Exception as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        declined = line.startswith(f"backend {name!r} cannot run")
        if name in MAY_DECLINE or declined or isinstance(error, torch.OutOfMemoryError):
            return line[:200]
        raise
    seen_as = op.as_peer.get(name)
    if seen_as is not None and not case.backward:
        expected = tuple(seen_as(case, x) for x in expected)
    wrong = difference(got, expected, TOLERANCE[case.dtype])
    if wrong is not None:
        raise Refused(f"{op.name} {case}: {name} differs from the reference: {wrong}")
    return None


def difference(
    got: tuple[Tensor, ...], expected: tuple[Tensor, ...], tolerance: float
) -> str | None:
    """How the outputs differ, or None: integers equal, the rest within the tolerance."""
    if [x.shape for x in got] != [x.shape for x in expected]:
        shapes = [[list(x.shape) for x in side] for side in (got, expected)]
        return f"shapes {shapes[0]} for {shapes[1]}"
    for x, y in zip(got, expected, strict=True):
        if not y.is_floating_point():
            if not torch.equal(x.long(), y.long()):
                return f"{int((x.long() != y.long()).sum())} of {y.numel()} integers"
            continue
        error, scale = _largest(x, y)
        if error > tolerance * scale:
            return f"by {error:.1e}, the largest value is {scale:.1e}"
    return None


def _largest(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Largest difference and largest finite value of ``y``, in slices: tensors fill the memory."""
    error = scale = 0.0
    for a, b in zip(x.detach().split(4096), y.detach().split(4096), strict=True):
        off = (a.float() - b).masked_fill_(a == b, 0)  # equal infinities do not differ
        error = max(error, off.abs().nan_to_num(math.inf, math.inf).max().item())
        scale = max(scale, b.abs().masked_fill(b.isinf(), 0).max().item())
    return error, scale


class _ChosenError(Exception):
    """Ends a call as soon as its backend is chosen."""


def _automatic(op: Op, args: tuple[Any, ...]) -> str:
    """The backend that a call without a name takes for these arguments."""
    chosen: list[str] = []

    def announce(announced: str, backend: str) -> None:
        if announced == op.name:
            chosen.append(backend)
            raise _ChosenError

    with mock.patch.object(registry, "_announce", announce), suppress(_ChosenError):
        op.ours(*args)
    return chosen[0]

# SPDX-License-Identifier: Apache-2.0
"""Any call within the contract, on every backend that runs here: against fp64, with the tolerance
that plain PyTorch's own error sets. Gradients too."""

from __future__ import annotations

from typing import Any

import fuzz
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerance import judge

import tdc_kernels as tk
from tdc_kernels import registry

# Cases of the slower tier; the interpreter of Triton and the stand-in for CUDA take milliseconds
# for what native code does in microseconds.
CASES = {"native": 8500, "torch": 1500, "cuda": 1000, "triton": 500}
RUNS = [(r.op, r.backend) for r in registry.table("cpu") if r.available and r.backend in CASES]


def run(op: str, call: dict[str, Any], backend: str, dtype: torch.dtype | None = None) -> Any:
    """Outputs and gradients; with ``dtype``, all that floats in it."""

    def prepared(x: Any) -> Any:
        if not isinstance(x, torch.Tensor) or not x.is_floating_point():
            return x
        return (x if dtype is None or op == "scene_boundaries" else x.to(dtype)).detach()

    call = {name: prepared(x) for name, x in call.items()}
    leaves = [x.requires_grad_() for x in call.values() if is_floating(x)]
    out = getattr(tk, op)(**call, backend=backend)
    outs = list(out) if isinstance(out, tuple) else [out]
    wanted = [x for x in outs if x.is_floating_point() and x.requires_grad]
    if not wanted:
        return outs, []
    generator = torch.Generator().manual_seed(0)
    grad = torch.randn(wanted[0].shape, generator=generator, dtype=torch.float64)
    grad = grad.to(wanted[0].dtype)
    grads = torch.autograd.grad(wanted[0], leaves, grad, allow_unused=True)
    zeros = (torch.zeros_like(x) for x in leaves)
    found = [z if g is None else g for g, z in zip(grads, zeros, strict=True)]
    return [x.detach() for x in outs], found


def is_floating(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.is_floating_point()


def check(op: str, backend: str, data: st.DataObject) -> None:
    call = fuzz.CALLS[op](fuzz.Draw(data))
    ours, our_grads = run(op, call, backend)
    plain, plain_grads = run(op, call, "reference")
    exact, exact_grads = run(op, call, "reference", torch.float64)
    if op == "segment_scenes":  # of the similarities that this backend found
        names = ("num_boundaries", "cu_frames", "threshold")
        boundaries, similarity = ours
        frames = call["features"].shape[0]
        if frames > 0:
            given_ = (similarity, *(call[name] for name in names))
            assert torch.equal(boundaries, tk.scene_boundaries(*given_, backend="reference"))
        ours, plain, exact = ours[1:], plain[1:], exact[1:]
    for kind in zip(
        [*ours, *our_grads], [*plain, *plain_grads], [*exact, *exact_grads], strict=True
    ):
        if kind[0].is_floating_point():
            assert kind[0].dtype == kind[1].dtype
            judge(kind[0], kind[1], kind[2].double())
        else:
            assert torch.equal(kind[0], kind[1])


@pytest.mark.parametrize(("op", "backend"), RUNS)
@settings(max_examples=6)
@given(data=st.data())
def test_any_call(op, backend, data):
    check(op, backend, data)


@pytest.mark.slow
@pytest.mark.parametrize(("op", "backend"), RUNS)
def test_thousands_of_calls(op, backend):
    @settings(max_examples=CASES[backend])
    @given(data=st.data())
    def any_call(data):
        check(op, backend, data)

    any_call()

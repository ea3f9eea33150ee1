# SPDX-License-Identifier: Apache-2.0
"""What PyTorch asks of an operator, for every op: opcheck, torch.compile, torch.export."""

from __future__ import annotations

import pytest
import samples
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from tdc_kernels import registry

OPS = registry.ops()
REGISTERED = [(r.op, r.backend) for r in registry.table("cpu") if r.available]
both = pytest.mark.parametrize("packed", [False, True], ids=["single", "packed"])


def with_gradients(args):
    return tuple(
        a.clone().requires_grad_() if isinstance(a, torch.Tensor) and a.is_floating_point() else a
        for a in args
    )


@pytest.mark.parametrize(("op", "backend"), REGISTERED)
@both
def test_opcheck(op, backend, packed):
    handle = registry.entry(op, backend).handle
    args = samples.operator_arguments(op, 1, packed)
    torch.library.opcheck(handle, args)  # all four utilities
    torch.library.opcheck(handle, with_gradients(args))


@pytest.mark.parametrize("op", OPS)
@both
def test_compiles_once_for_all_lengths(op, packed):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    function = samples.public(op)
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=counter)
    for n in (2, 1, 4):
        args = samples.arguments(op, n, packed)
        torch.testing.assert_close(compiled(*args), function(*args))
    assert counter.frame_count == 1


@pytest.mark.parametrize("op", OPS)
def test_gradients_through_compile(op):
    torch._dynamo.reset()
    function = samples.public(op)
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")

    def gradients(f, args):
        args = with_gradients(args)
        outs = f(*args)
        outs = outs if isinstance(outs, tuple) else (outs,)
        total = sum(o[o.isfinite()].pow(2).sum() for o in outs if o.requires_grad)
        if isinstance(total, int):
            return []
        inputs = [a for a in args if isinstance(a, torch.Tensor) and a.requires_grad]
        return torch.autograd.grad(total, inputs)

    args = samples.arguments(op, 1, True)
    wanted = gradients(function, args)
    torch.testing.assert_close(gradients(compiled, args), wanted)
    assert bool(wanted) == (op != "scene_boundaries")


@pytest.mark.slow
@pytest.mark.parametrize("op", ["anchor_queries", "scene_boundaries"])
def test_inductor(op):
    """The two whose shapes inductor is likeliest to fix: it has lowerings for pools and sorts."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("inductor")
    function = samples.public(op)
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=counter)
    for n in (2, 1):
        args = samples.arguments(op, n, True)
        torch.testing.assert_close(compiled(*args), function(*args))
    assert counter.frame_count == 1


class Module(torch.nn.Module):
    """An op as torch.export wants it; what is no tensor is fixed."""

    def __init__(self, op, args):
        super().__init__()
        self.function = samples.public(op)
        self.args = args

    def forward(self, *tensors):
        rest = iter(tensors)
        args = [next(rest) if isinstance(a, torch.Tensor) else a for a in self.args]
        return self.function(*args)


@pytest.mark.parametrize("op", OPS)
@both
def test_export(op, packed):
    args = samples.arguments(op, 1, packed)
    tensors = tuple(a for a in args if isinstance(a, torch.Tensor))
    module = Module(op, args)
    exported = torch.export.export(module, tensors)
    torch.testing.assert_close(exported.module()(*tensors), module(*tensors))
    names = {str(n.target) for n in exported.graph.nodes if n.op == "call_function"}
    assert any(op in name for name in names)  # the op itself, not its pieces


@pytest.mark.parametrize("op", OPS)
@both
def test_fake_tensors(op, packed):
    """Shape inference without data: what torch.compile and a serving engine's dry run need."""
    args = samples.operator_arguments(op, 1, packed)
    real = samples.public(op)(*samples.arguments(op, 1, packed))
    real = real[0] if isinstance(real, tuple) else real
    for backend in (b for o, b in REGISTERED if o == op):
        with torch._subclasses.FakeTensorMode() as mode:
            fakes = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in args]
            out = registry.entry(op, backend).handle(*fakes)
        out = out[0] if isinstance(out, tuple) else out
        assert (out.shape, out.dtype) == (real.shape, real.dtype)

# SPDX-License-Identifier: Apache-2.0
"""What PyTorch asks of an operator, for every op: opcheck, torch.compile, torch.export."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import samples
import torch

import tdc_kernels as tk
from tdc_kernels import registry

OPS = registry.ops()
REGISTERED = [(r.op, r.backend) for r in registry.table("cpu") if r.available]
# The compiler sees one opaque operator, of Triton as of the others; its interpreter takes seconds,
# and so does tracing the reference of cross_attention.
DEAR = [row for row in REGISTERED if row[1] == "triton"]
DEAR += [("segment_scenes", "reference"), ("cross_attention", "cuda")]
DEAR += [("cross_attention", "reference"), ("cross_attention", "torch")]
COMPILED = [pytest.param(*row, marks=[pytest.mark.slow] * (row in DEAR)) for row in REGISTERED]
# Two that are PyTorch's own code: seconds each.
CHECKED = [pytest.param(*r, marks=[pytest.mark.slow] * (r in DEAR[-2:])) for r in REGISTERED]
TRITON_DEAR = [("cross_attention", "triton"), ("anchor_queries", "triton")]
both = pytest.mark.parametrize("packed", [False, True], ids=["single", "packed"])


def with_gradients(args):
    return tuple(
        a.clone().requires_grad_() if isinstance(a, torch.Tensor) and a.is_floating_point() else a
        for a in args
    )


@pytest.mark.parametrize(("op", "backend"), CHECKED)
@both
def test_opcheck(op, backend, packed):
    args = samples.operator_arguments(op, 1, packed)
    entry = registry.entry(op, backend)
    # All four utilities; they compare outputs, shapes on fake tensors, and gradients if asked for.
    gradients = packed and not entry.opaque  # an opaque one gets its gradient outside, see below
    torch.library.opcheck(entry.handle, with_gradients(args) if gradients else args)


@pytest.mark.parametrize(
    ("op", "backend"),
    [
        pytest.param(*r, marks=[pytest.mark.slow] * (r in TRITON_DEAR))
        for r in REGISTERED
        if registry.entry(*r).backward
    ],
)
@both
def test_opcheck_backward(op, backend, packed, monkeypatch):
    """The arguments that the op's autograd.Function really passes."""
    entry = registry.entry(op, backend)
    seen = []

    def backward(*args):
        seen.append([a.detach() if isinstance(a, torch.Tensor) else a for a in args])
        return entry.backward(*args)

    entries = {**registry._ENTRIES[op], backend: replace(entry, backward=backward)}
    monkeypatch.setitem(registry._ENTRIES, op, entries)
    out = samples.public(op)(*with_gradients(samples.arguments(op, 1, packed)), backend=backend)
    (out[0] if isinstance(out, tuple) else out).nan_to_num(posinf=0).sum().backward()
    (args,) = seen
    torch.library.opcheck(entry.backward, args)


@pytest.mark.parametrize(("op", "backend"), COMPILED)
@both
def test_gradient_compiles_once(op, backend, packed):
    """torch.compile(fullgraph=True) through forward and backward, for any number of frames."""
    if op == "scene_boundaries":
        pytest.skip("not differentiable")
    torch._dynamo.reset()
    public = samples.public(op)

    def loss(args):
        out = public(*args, backend=backend)
        floating = [x for x in (out if isinstance(out, tuple) else (out,)) if x.is_floating_point()]
        return floating[0].nan_to_num(posinf=0).square().sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (2, 1, 4):
        args = with_gradients(samples.arguments(op, n, packed))
        leaves = [a for a in args if isinstance(a, torch.Tensor) and a.requires_grad]
        wanted = torch.autograd.grad(loss(args), leaves)
        with torch._dynamo.config.patch(error_on_recompile=True):
            got = torch.autograd.grad(compiled(args), leaves)
        scale = max(
            w.abs().max() for w in wanted if w.numel()
        )  # a key's bias has a gradient of zero
        for ours, theirs in zip(got, wanted, strict=True):  # sums in another order
            torch.testing.assert_close(ours / scale, theirs / scale)


def compiles_once(op, packed, compiler, several_sizes):
    torch._dynamo.reset()
    function = samples.public(op)
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=compiler)
    for n in several_sizes:
        args = samples.arguments(op, n, packed)
        with torch._dynamo.config.patch(error_on_recompile=True):
            got = compiled(*args)
        torch.testing.assert_close(got, function(*args))


@pytest.mark.parametrize("op", OPS)
@both
def test_compiles_once_for_all_lengths(op, packed):
    compiles_once(op, packed, "aot_eager", (2, 1, 4))


@pytest.mark.parametrize(
    ("op", "varied"), [("scene_boundaries", "number"), ("segment_scenes", "limit")]
)
@pytest.mark.parametrize("cu", [None, torch.tensor([0, 7, 7, 20])], ids=["single", "packed"])
def test_varying_numbers_compile_a_few_graphs(op, varied, cu):
    """Thirty numbers of boundaries or thresholds, without an end at the limit of compilations."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    function = samples.public(op)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    x = torch.randn(20, 6) if op == "segment_scenes" else torch.randn(19)
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for n in range(30):
            more = (n, cu, None) if varied == "number" else (5, cu, n / 10 - 1.45)
            torch.testing.assert_close(compiled(x, *more), function(x, *more), rtol=0, atol=0)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 4  # 0, 1, another, any


@pytest.mark.slow
@pytest.mark.parametrize("op", ["anchor_queries", "scene_boundaries"])
def test_inductor(op):
    """The two whose shapes inductor is likeliest to fix: it has lowerings for pools and sorts."""
    compiles_once(op, True, "inductor", (2, 1))


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["cuda", "triton"])
@pytest.mark.parametrize("op", [op for op in OPS if "native" in registry._ENTRIES[op]])
@both
def test_cuda_graph(op, backend, packed):
    """Nothing waits for the device and nothing is copied from the host: a call can be captured."""

    def on_device(a):
        return a.to("cuda") if isinstance(a, torch.Tensor | tk.ContextPlan) else a

    args = [on_device(a) for a in samples.arguments(op, 1, packed)]
    public = samples.public(op)
    wanted = public(*args, backend=backend)  # compiles the kernels, too
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = public(*args, backend=backend)
    graph.replay()
    torch.testing.assert_close(got, wanted, rtol=0, atol=0)


class Module(torch.nn.Module):
    """An op as torch.export wants it; what is no tensor is fixed."""

    def __init__(self, op, args, backend):
        super().__init__()
        self.function = partial(samples.public(op), backend=backend)
        self.args = args

    def forward(self, *tensors):
        rest = iter(tensors)
        args = [next(rest) if isinstance(a, torch.Tensor) else a for a in self.args]
        return self.function(*args)


@pytest.mark.parametrize(("op", "backend"), COMPILED)
@both
def test_export(op, backend, packed):
    args = samples.arguments(op, 1, packed)
    tensors = tuple(a for a in args if isinstance(a, torch.Tensor))
    module = Module(op, args, backend)
    exported = torch.export.export(module, tensors)
    torch.testing.assert_close(exported.module()(*tensors), module(*tensors))
    names = {str(n.target) for n in exported.graph.nodes if n.op == "call_function"}
    if registry.entry(op, backend).opaque:
        assert f"tdc_{backend}.{op}.default" in names  # the op itself, not its pieces


@pytest.mark.parametrize("op", [op for op in OPS if op != "scene_boundaries"])
@pytest.mark.parametrize("how", [torch.bfloat16, torch.float16, "autocast"], ids=str)
def test_compiles_in_half_precision(op, how):
    """The choice of a backend asks other things of this machine than in fp32."""
    torch._dynamo.reset()
    args = samples.arguments(op, 1, packed=True)
    if how != "autocast":
        args = [
            a.to(how) if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args
        ]
    function = samples.public(op)
    with torch.autocast("cpu", enabled=how == "autocast"):
        got = torch.compile(function, fullgraph=True, backend="aot_eager")(*args)
        wanted = function(*args)
    torch.testing.assert_close(got, wanted, rtol=0.02, atol=0.02)

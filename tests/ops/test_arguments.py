# SPDX-License-Identifier: Apache-2.0
"""Arguments that are right or wrong for every op and backend alike."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import samples
import torch

import tdc_kernels as tk
from tdc_kernels import registry

ROWS = [(r.op, r.backend) for r in registry.table("cpu") if r.available]
every = pytest.mark.parametrize(("op", "backend"), ROWS)


def with_gaps(a):
    """Integers and masks, those of a plan too, that lie apart in memory, with others between."""
    if isinstance(a, tk.ContextPlan):
        tensors = {f.name: getattr(a, f.name) for f in fields(a) if f.name != "num_queries"}
        return replace(a, **{name: with_gaps(x) for name, x in tensors.items()})
    if not isinstance(a, torch.Tensor) or a.is_floating_point():
        return a
    between = ~a if a.dtype == torch.bool else a.flip(0)
    return torch.stack([a, between], dim=-1)[..., 0]


@every
def test_integers_with_gaps(op, backend):
    args = samples.arguments(op, 1, packed=True)
    function = samples.public(op)
    wanted = function(*args, backend=backend)
    got = function(*map(with_gaps, args), backend=backend)
    torch.testing.assert_close(got, wanted, rtol=0, atol=0)


@every
def test_integers_with_gaps_in_the_operator(op, backend):
    """The operator alone refuses in words what it does not read."""
    args = samples.operator_arguments(op, 1, packed=True)
    handle = registry.entry(op, backend).handle
    wanted = handle(*args)
    try:
        got = handle(*map(with_gaps, args))
    except RuntimeError as error:
        assert backend in ("native", "cuda")
        assert "expected one contiguous dimension" in str(error)
    else:
        torch.testing.assert_close(got, wanted, rtol=0, atol=0)


@every
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_dtype_that_no_kernel_has(op, backend, dtype):
    args = list(samples.arguments(op, 1, packed=False))
    for i, x in enumerate(args):
        if isinstance(x, torch.Tensor) and x.is_floating_point():
            wrong = [*args[:i], x.to(dtype), *args[i + 1 :]]
            with pytest.raises(
                TypeError, match="expected one of float16, bfloat16, float32, float"
            ):
                samples.public(op)(*wrong, backend=backend)


@every
def test_no_frames_with_gaps(op, backend):
    """Found by fuzzing: an empty tensor's strides mean nothing, and contiguous() leaves them."""
    if op not in ("frame_similarity", "segment_scenes", "anchor_queries"):
        return
    gaps = torch.ones(0, 5, 25)[..., ::2]
    more = {"segment_scenes": (3,), "anchor_queries": (2,)}.get(op, ())
    x = gaps.clone().as_strided(gaps.shape, gaps.stride()).requires_grad_()
    out = samples.public(op)(x, *more, backend=backend)
    out = out if isinstance(out, torch.Tensor) else out[1]
    (grad,) = torch.autograd.grad(out, x, torch.ones_like(out))
    assert grad.shape == x.shape


@pytest.mark.parametrize("backend", [b for op, b in ROWS if op == "cross_attention"])
@pytest.mark.parametrize("strategy", ["project", "absorb"])
def test_gradients_without_queries(backend, strategy):
    """Found by fuzzing."""
    leaves = [
        torch.randn(*shape).requires_grad_() for shape in ((4, 0, 6), (4, 5, 3), (6, 3), (6, 3))
    ]
    query, visual, w_key, w_value = leaves
    out = tk.cross_attention(
        query,
        visual,
        w_key=w_key,
        b_key=None,
        w_value=w_value,
        b_value=None,
        num_heads=2,
        strategy=strategy,
        backend=backend,
    )
    grads = torch.autograd.grad(out.sum(), leaves, allow_unused=True, materialize_grads=True)
    assert not any(g.any() for g in grads)


RAW = [r for r in ROWS if registry.entry(*r).opaque]


@pytest.mark.parametrize(("op", "backend"), RAW)
def test_operator_alone_checks_what_it_reads(op, backend):
    """Every tensor of another shape or dtype is refused in words, not read."""
    args = samples.operator_arguments(op, 1, packed=True)
    handle = registry.entry(op, backend).handle
    for i, x in enumerate(args):
        if not isinstance(x, torch.Tensor) or (op, i) in UNREAD:
            continue
        for wrong in (x[None], x.to(torch.complex64), x.to(torch.int16)):
            with pytest.raises((RuntimeError, TypeError, ValueError), match=r"expected|dtype"):
                handle(*args[:i], wrong, *args[i + 1 :])


# The way back, which the forward does not read; the bias that the softmax does not see.
UNREAD = {("pack_context", 4), ("pack_context", 5), ("cross_attention", 4)}


@every
@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.uint8, torch.int32, torch.bool, torch.complex64], ids=str
)
def test_numbers_that_do_not_float(op, backend, dtype):
    args = list(samples.arguments(op, 1, packed=False))
    i = next(i for i, x in enumerate(args) if isinstance(x, torch.Tensor))
    with pytest.raises(TypeError, match="expected a floating tensor"):
        samples.public(op)(*args[:i], args[i].to(dtype), *args[i + 1 :], backend=backend)

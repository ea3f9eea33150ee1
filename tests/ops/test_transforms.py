# SPDX-License-Identifier: Apache-2.0
"""Derivatives other than ``backward()``'s first: right, or one error, never zero in silence."""

from __future__ import annotations

import pytest
import samples
import torch
from torch.autograd import forward_ad

from tdc_kernels import registry

OPS = [op for op in registry.ops() if op != "scene_boundaries"]  # whose result is integers
OPAQUE = [
    pytest.param(r.op, r.backend, marks=[pytest.mark.slow] * (r.backend == "triton"))
    for r in registry.table("cpu")
    if r.op in OPS and r.available and registry.entry(r.op, r.backend).opaque
]


TORCH = ("cross_attention", "torch")


def loss_of(op, backend=None, linear=False):
    """A loss of the op's floating arguments, and these."""
    args = samples.arguments(op, 1, packed=True)
    tensors = [a for a in args if isinstance(a, torch.Tensor) and a.is_floating_point()]

    def loss(*given):
        rest = iter(given)
        floating = (isinstance(a, torch.Tensor) and a.is_floating_point() for a in args)
        used = [next(rest) if f else a for f, a in zip(floating, args, strict=True)]
        out = samples.public(op)(*used, backend=backend)
        out = next(x for x in (out if isinstance(out, tuple) else (out,)) if x.is_floating_point())
        out = out.nan_to_num(posinf=0)
        return (out if linear else out.sin()).sum()

    return loss, tensors


def jvp(loss, tensors, along):
    return torch.func.jvp(loss, tuple(tensors), tuple(along))[1]


def of_rows(loss, tensors, along):
    """The same through a vmap inside."""
    first = tensors[0].expand(2, *tensors[0].shape)
    many = torch.func.vmap(loss, in_dims=(0, *[None] * (len(tensors) - 1)))
    tangents = (along[0].expand_as(first), *along[1:])
    return torch.func.jvp(many, (first, *tensors[1:]), tangents)[1][1]


def dual(loss, tensors, along):
    with forward_ad.dual_level():
        out = loss(*map(forward_ad.make_dual, tensors, along))
        return forward_ad.unpack_dual(out).tangent


def grad(loss, tensors, along):
    grads = torch.func.grad(loss, tuple(range(len(tensors))))(*tensors)
    return sum((g * t).sum() for g, t in zip(grads, along, strict=True))


def vjp(loss, tensors, along):
    grads = torch.func.vjp(loss, *tensors)[1](torch.ones(()))
    return sum((g * t).sum() for g, t in zip(grads, along, strict=True))


ways = pytest.mark.parametrize("way", [jvp, of_rows, dual, grad, vjp])


@pytest.mark.parametrize(("op", "backend"), [*((op, None) for op in OPS), TORCH])
@ways
def test_derivative_along(op, backend, way):
    """As ``backward()`` of the backend that is chosen there says."""
    loss, tensors = loss_of(op, backend)
    along = [torch.randn_like(x) for x in tensors]
    leaves = [x.clone().requires_grad_() for x in tensors]
    grads = torch.autograd.grad(loss(*leaves), leaves)
    wanted = sum((g * t).sum() for g, t in zip(grads, along, strict=True))
    torch.testing.assert_close(way(loss, tensors, along), wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("op", "backend"), OPAQUE)
@ways
def test_backend_without_the_derivative_says_so(op, backend, way):
    loss, tensors = loss_of(op, backend)
    message = f"^backend '{backend}' cannot run {op}: it has no derivative for torch.func"
    with pytest.raises(RuntimeError, match=message):
        way(loss, tensors, tensors)


@pytest.mark.parametrize(("op", "backend"), OPAQUE)
def test_vmap_alone_runs_on_every_backend(op, backend):
    loss, tensors = loss_of(op, backend)
    first = torch.stack([tensors[0], 2 * tensors[0]])
    got = torch.func.vmap(lambda x: loss(x, *tensors[1:]))(first)
    wanted = torch.stack([loss(x, *tensors[1:]) for x in first])
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize(("op", "backend"), OPAQUE)
def test_second_derivative_says_so(op, backend):
    """Also where the first was of a plain sum, whose own gradient depends on nothing."""
    loss, tensors = loss_of(op, backend, linear=True)
    leaves = [x.clone().requires_grad_() for x in tensors]
    total = loss(*leaves)
    grads = torch.autograd.grad(total, leaves, create_graph=True)
    torch.testing.assert_close(grads, torch.autograd.grad(loss(*leaves), leaves))
    with pytest.raises(RuntimeError, match=f"^{op}: this backend differentiates once"):
        (total + sum(g.square().sum() for g in grads)).backward()


@pytest.mark.parametrize(("op", "backend"), [*((op, None) for op in OPS), TORCH])
@pytest.mark.parametrize("jacobian", [torch.func.jacrev, torch.func.jacfwd])
def test_jacobian(op, backend, jacobian):
    loss, tensors = loss_of(op, backend)
    two = torch.tensor([1.0, -2.0])
    found = jacobian(lambda x: loss(x, *tensors[1:]) * two)(tensors[0])
    leaf = tensors[0].clone().requires_grad_()
    (wanted,) = torch.autograd.grad(loss(leaf, *tensors[1:]), leaf)
    torch.testing.assert_close(found, two.view(2, *[1] * leaf.ndim) * wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("op", "backend"), OPAQUE)
@pytest.mark.parametrize("wanted", ["tangent", "gradient", "func"])
def test_operator_alone_has_no_derivative(op, backend, wanted):
    """Past the public function: an error, where PyTorch would give zeros."""
    args = samples.operator_arguments(op, 1, packed=True)
    handle, x = registry.entry(op, backend).handle, args[0]
    message = f"^tdc_{backend}::{op}: the operator alone has no derivative, tdc_kernels.{op} has"
    with pytest.raises(RuntimeError, match=message):
        if wanted == "tangent":
            with forward_ad.dual_level():
                handle(forward_ad.make_dual(x, torch.ones_like(x)), *args[1:])
        elif wanted == "gradient":
            handle(x.clone().requires_grad_(), *args[1:])
        else:
            torch.func.jvp(lambda x: handle(x, *args[1:]), (x,), (torch.ones_like(x),))
    with torch.no_grad():
        handle(x.clone().requires_grad_(), *args[1:])

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

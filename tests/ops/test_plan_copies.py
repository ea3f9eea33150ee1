# SPDX-License-Identifier: Apache-2.0
"""A plan on its way to the device of the pieces."""

from __future__ import annotations

import pytest
import samples
import torch
from targets import targets
from torch.utils._python_dispatch import TorchDispatchMode

import tdc_kernels as tk
from tdc_kernels.ops.pack_context import _way
from tdc_kernels.plan import copied

OP = "pack_context"


class Copies(TorchDispatchMode):
    """Counts copies between devices."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if "copy" in str(function) and out.device != args[0].device:
            self.count += 1
        return out


def test_plan_is_copied_at_once():
    """Host to device, for which the meta device stands in; and none of a plan that is there."""
    *parts, plan = samples.arguments(OP, 1, packed=True)
    parts = [x.to("meta") for x in parts]
    with Copies() as copies:
        packed, cu_context = tk.pack_context(*parts, plan, backend="reference")
    assert (packed.device.type, cu_context.device.type, copies.count) == ("meta", "meta", 1)
    with Copies() as copies:
        there = plan.to("meta")
    assert copies.count == 1
    with Copies() as copies:
        tk.pack_context(*parts, there, backend="reference")
    assert copies.count == 0


def test_copied_plan_is_the_same():
    plan = samples.arguments(OP, 1, packed=True)[3]
    tensors = [plan.source, plan.position, plan.cu_context]
    found = copied(tensors, torch.device("cpu:0"))  # which is not "cpu" to whoever compares
    assert all(map(torch.equal, found, tensors))


def test_plan_elsewhere_during_capture(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(ValueError, match=r"plan: expected one on cuda:0 while a graph is captured"):
        _way(samples.arguments(OP, 1, packed=True)[3], torch.device("cuda:0"))
    assert len(_way(samples.arguments(OP, 1, packed=True)[3], torch.device("cpu"))) == 4


@targets("pack_context")
def test_no_rows_with_gaps(target):
    """Found by fuzzing: an empty tensor's strides mean nothing, and contiguous() leaves them."""
    gaps = torch.ones(0, 25, device=target.device)[:, ::2]
    compressed = torch.ones(0, 3, 25, device=target.device)[..., ::2]
    plan = tk.plan_context(torch.zeros(0, 2).int(), [0], None, 7, 3)
    packed, _ = tk.pack_context(gaps, compressed, gaps.new_ones(13), plan, backend=target.backend)
    assert packed.shape == (0, 13)

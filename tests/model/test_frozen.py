# SPDX-License-Identifier: Apache-2.0
"""A frozen model takes the fast matrix products. torch's linear multiplies a 3-D input that is not
contiguous entry by entry, with expanded weights, as soon as no gradient is to come."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from toy import toy_config, toy_inputs, toy_model, toy_processor

from tdc_kernels import nn as kernels


class ExpandedProducts(TorchDispatchMode):
    """Records batched products one side of which is the same for every entry."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[list[torch.Size]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        tensors = [x for x in args if isinstance(x, torch.Tensor)]
        expanded = any(x.ndim == 3 and len(x) > 1 and x.stride(0) == 0 for x in tensors)
        if expanded and function._schema.name in ("aten::bmm", "aten::baddbmm"):
            self.found.append([x.shape for x in tensors])
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param({"query_type": "learned"}, marks=pytest.mark.slow),
        pytest.param({"tower_grid": 4}, marks=pytest.mark.slow),  # tokens are not resized
        pytest.param({"frame_grid": 8, "connector_query_groups": 2}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_nothing_is_multiplied_entry_by_entry(changes):
    config = toy_config(**changes)
    model = toy_model(config).requires_grad_(False)
    inputs = toy_inputs(toy_processor(config))
    with ExpandedProducts() as products:
        model(**inputs)
        model.compressor.speedups = type(model.compressor.speedups).none()
        model(**inputs)
    assert not products.found


def test_slices_into_the_modules():
    model, x = toy_model().requires_grad_(False), torch.randn(4, 9, 32)
    layer = kernels.CrossAttention(16, 32, 2).requires_grad_(False)
    with ExpandedProducts() as products:
        torch.nn.functional.linear(x[:, :5], torch.randn(8, 32))
    assert products.found  # torch does so still
    connector, tokens = model.video_encoder.connector, torch.randn(4, 70, 40)
    with ExpandedProducts() as products:
        layer(torch.randn(4, 5, 16)[:, :3], x[:, 1:6], x[:, 6:])
        connector(tokens[:, 1:65, :16], tokens[:, 1:65, :24], (24, 24))
    assert not products.found

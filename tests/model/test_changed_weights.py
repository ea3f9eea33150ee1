# SPDX-License-Identifier: Apache-2.0
"""What is kept from one question to the next follows the weights, however they are written."""

from __future__ import annotations

import copy

import pytest
import torch
from test_layers import context, new_model, slow, some_slow
from test_layers import inputs as inputs


def written(model, other) -> None:
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        p.data.copy_(q)


def by_numpy(model, other) -> None:
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        p.detach().numpy()[:] = q.detach().numpy()


def pointed(model, other) -> None:
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        p.data = q.data.clone()


def stepped(model, other) -> None:
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        p.grad = p - q
    torch.optim.SGD(model.parameters(), lr=1.0).step()


def in_inference_mode(model, other) -> None:
    with torch.inference_mode():
        model.load_state_dict(other.state_dict())


CHANGES = {
    "data": written,
    "numpy": by_numpy,
    "pointed": pointed,
    "optimizer": stepped,
    "inference mode": in_inference_mode,
    "loaded": lambda model, other: model.load_state_dict(other.state_dict()),
    "assigned": lambda model, other: model.load_state_dict(other.state_dict(), assign=True),
    "shared": lambda model, other: written(model.share_memory(), other),
}


@torch.no_grad()
@pytest.mark.parametrize("change", some_slow(CHANGES, ("data", "inference mode")))
def test_changed_weights_are_noticed(change, inputs):
    model, other = new_model(), new_model(1)
    context(model, inputs)
    CHANGES[change](model, other)
    expected = context(other, inputs)
    torch.testing.assert_close(context(model, inputs), expected, rtol=0, atol=1e-9)


@slow
@torch.no_grad()
@pytest.mark.parametrize("write", [torch.neg, lambda p: p.flip(0), lambda p: p.flip(-1)])
def test_the_same_numbers_elsewhere_are_noticed(write, inputs):
    model = new_model()
    context(model, inputs)
    for name, p in model.compressor.named_parameters():
        if name.endswith(("key.weight", "value.weight", "query_proj.weight")):
            p.data.copy_(write(p))
    expected = context(copy.deepcopy(model), inputs)  # a copy starts empty
    torch.testing.assert_close(context(model, inputs), expected, rtol=0, atol=1e-9)


@slow
@torch.no_grad()
def test_there_and_back_through_half(inputs):
    model = new_model()
    context(model, inputs)
    model.half().float()
    expected = context(copy.deepcopy(model), inputs)
    torch.testing.assert_close(context(model, inputs), expected, rtol=0, atol=0)

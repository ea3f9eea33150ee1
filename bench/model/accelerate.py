# SPDX-License-Identifier: Apache-2.0
"""``tdc_kernels.accelerate`` on InstructBLIP-Video's Q-Former, full size, random weights.

The untouched module and the accelerated one, forward, and forward and backward.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import InstructBlipVideoQFormerConfig, InstructBlipVideoQFormerModel

import tdc_kernels

from ..benchmark import Benchmark, Measurement, Refused
from ..report import results
from ..timing.turns import Timing

SIZES = (  # frames, dtype, backward
    (1, torch.float32, False),
    (8, torch.float32, False),
    (8, torch.float32, True),
    (8, torch.bfloat16, False),
)
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1}  # of outputs of about 1


def make(frames: int, dtype: torch.dtype) -> tuple[nn.Module, nn.Module, dict[str, Tensor]]:
    """The original, an accelerated copy, and their inputs: 32 queries and 12 words over 257 tokens
    of 1408 values a frame."""
    torch.manual_seed(0)
    config = InstructBlipVideoQFormerConfig(
        vocab_size=1000, attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0
    )
    plain: nn.Module = InstructBlipVideoQFormerModel(config)
    plain.to(dtype)
    ours = copy.deepcopy(plain)
    tdc_kernels.accelerate(ours)
    inputs = {
        "input_ids": torch.randint(1000, (frames, 12)),
        "query_embeds": torch.randn(frames, 32, 768).to(dtype),
        "encoder_hidden_states": torch.randn(frames, 257, 1408).to(dtype),
        "encoder_attention_mask": torch.ones(frames, 257, dtype=torch.long),
    }
    return plain, ours, inputs


def run(model: nn.Module, inputs: dict[str, Tensor], backward: bool) -> Tensor:
    with torch.set_grad_enabled(backward):
        out = model(**inputs).last_hidden_state
        if backward:
            loss = out.float().square().sum()
            torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return out.detach()


def measurement(frames: int, dtype: torch.dtype, backward: bool) -> Measurement:
    plain, ours, inputs = make(frames, dtype)
    error = (run(ours, inputs, False) - run(plain, inputs, False)).abs().max().item()
    if not error <= TOLERANCE[dtype]:
        raise Refused(f"outputs differ by {error:.1e}")
    facts = {
        "model": "InstructBLIP-Video Q-Former",
        "frames": frames,
        "dtype": str(dtype).removeprefix("torch."),
        "direction": "forward+backward" if backward else "forward",
        "largest_difference": error,
    }
    calls = {
        name: partial(run, m, inputs, backward) for name, m in (("plain", plain), ("ours", ours))
    }
    title = f"{frames} frames, {facts['dtype']}, {facts['direction']}"
    return Measurement(title, "accelerate", calls, rows, facts)


def rows(times: Mapping[str, Timing]) -> list[dict[str, Any]]:
    found = results.row(times)
    return [{"times": found["times"], "speedup": found["ratios"]["plain"]}]


def measurements(args: argparse.Namespace) -> Iterator[Measurement]:
    return (measurement(*size) for size in SIZES)


BENCHMARK = Benchmark("accelerate", measurements, devices=("cpu",), rounds=7, inference=False)

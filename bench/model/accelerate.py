# SPDX-License-Identifier: Apache-2.0
"""``tdc_kernels.accelerate`` on InstructBLIP-Video's Q-Former, full size, random weights.

``python -m bench.model.accelerate`` times the untouched module and the accelerated one in turns,
forward, and forward and backward, after comparing their outputs, and writes the results file.
"""

from __future__ import annotations

import argparse
import copy
import logging
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import InstructBlipVideoQFormerConfig, InstructBlipVideoQFormerModel

import tdc_kernels
from bench.timing import turns as harness

TOLERANCE = {
    torch.float32: 1e-4,
    torch.bfloat16: 0.1,
}  # of outputs of about 1


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


def measure(frames: int, dtype: torch.dtype, backward: bool, rounds: int) -> dict[str, Any]:
    plain, ours, inputs = make(frames, dtype)
    error = (run(ours, inputs, False) - run(plain, inputs, False)).abs().max().item()
    if not error <= TOLERANCE[dtype]:
        raise RuntimeError(f"outputs differ by {error:.1e}: no number is worth reporting")
    times = harness.interleave(
        {name: partial(run, m, inputs, backward) for name, m in (("plain", plain), ("ours", ours))},
        rounds,
    )
    medians = {name: timing.quantile(0.5) for name, timing in times.items()}
    return {
        "model": "InstructBLIP-Video Q-Former",
        "frames": frames,
        "dtype": str(dtype).removeprefix("torch."),
        "direction": "forward+backward" if backward else "forward",
        "largest_difference": error,
        "times": {name: timing.summary() for name, timing in times.items()},
        "speedup": round(medians["plain"] / medians["ours"], 3),
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m bench.model.accelerate")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds (default: 7)")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default: 2)")
    parser.add_argument("--dry-run", action="store_true", help="do not write the results file")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    torch.set_num_threads(args.threads)
    load = harness.load_of_others()
    rows = []
    for frames, dtype, backward in (
        (1, torch.float32, False),
        (8, torch.float32, False),
        (8, torch.float32, True),
        (8, torch.bfloat16, False),
    ):
        row = measure(frames, dtype, backward, args.rounds) | {"load_before": load}
        rows.append(row)
        ours, plain = (row["times"][name]["median_s"] for name in ("ours", "plain"))
        what = f"{frames} frames, {row['dtype']}, {row['direction']}"
        print(f"{what}: {plain:.3f} s before, {ours:.3f} s after, {row['speedup']:.2f}x")
    if not args.dry_run:
        print(harness.record("accelerate", rows))


if __name__ == "__main__":
    main()

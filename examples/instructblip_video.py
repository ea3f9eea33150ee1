# SPDX-License-Identifier: Apache-2.0
"""InstructBLIP-Video's Q-Former of transformers, full size, random weights, 8 frames."""

import time

import torch
from transformers import InstructBlipVideoQFormerConfig, InstructBlipVideoQFormerModel

import tdc_kernels

torch.manual_seed(0)
qformer = InstructBlipVideoQFormerModel(InstructBlipVideoQFormerConfig(vocab_size=1000)).eval()
inputs = {
    "input_ids": torch.randint(1000, (8, 12)),  # the instruction, once per frame
    "query_embeds": torch.randn(8, 32, 768),
    "encoder_hidden_states": torch.randn(8, 257, 1408),  # EVA-CLIP's tokens of 8 frames
    "encoder_attention_mask": torch.ones(8, 257, dtype=torch.long),
}


@torch.no_grad()
def run() -> tuple[torch.Tensor, float]:
    start = time.perf_counter()
    return qformer(**inputs).last_hidden_state, time.perf_counter() - start


acceleration = tdc_kernels.accelerate(qformer)
print(acceleration)
times: list[list[float]] = [[], []]
for _ in range(4):  # in turns, the first round warms up
    with tdc_kernels.accelerate(qformer):
        ours, seconds = run()
        times[0].append(seconds)
    acceleration.undo()
    plain, seconds = run()
    times[1].append(seconds)
fast, slow = (sorted(t[1:])[1] for t in times)
print(f"largest difference: {(ours - plain).abs().max():.1e}")
print(f"whole Q-Former: {slow * 1e3:.0f} ms before, {fast * 1e3:.0f} ms after: {slow / fast:.2f}x")

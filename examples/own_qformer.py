# SPDX-License-Identifier: Apache-2.0
"""Cross-attention as a layer of your own Q-Former, trained for a few steps."""

import torch
from torch import nn

from tdc_kernels.nn import CrossAttention


class TinyQFormer(nn.Module):
    """Learned queries read each frame's visual and audio tokens."""

    def __init__(self, width: int, token_dim: int, num_queries: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(num_queries, width))
        self.norm = nn.LayerNorm(width)
        self.attention = CrossAttention(width, token_dim, num_heads=4)
        inner = nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        self.feed_forward = nn.Sequential(nn.LayerNorm(width), *inner)

    def forward(self, visual, audio=None, **lengths):
        x = self.queries.expand(len(visual), -1, -1)
        x = x + self.attention(self.norm(x), visual, audio, **lengths)
        return x + self.feed_forward(x)


torch.manual_seed(0)
model = TinyQFormer(width=64, token_dim=96, num_queries=8)
visual, audio = torch.randn(6, 50, 96), torch.randn(6, 10, 96)
audio_lengths = torch.tensor([10, 10, 4, 0, 10, 7])  # a frame may have no sound at all
target, optimizer = visual[:, :8, :64], torch.optim.AdamW(model.parameters(), lr=1e-2)
losses: list[torch.Tensor] = []
for _ in range(20):
    losses.append(nn.functional.mse_loss(model(visual, audio, audio_lengths=audio_lengths), target))
    optimizer.zero_grad()
    losses[-1].backward()
    optimizer.step()
print(f"6 frames of 60 tokens -> {list(model(visual, audio).shape)}")
print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f} in 20 steps")

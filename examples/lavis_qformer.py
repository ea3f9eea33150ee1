# SPDX-License-Identifier: Apache-2.0
"""Attention as LAVIS, Video-LLaMA and TDC carry it: recognised by what it takes and computes."""

import torch
from torch import nn

import tdc_kernels


class BertSelfAttention(nn.Module):  # stands for the one in your checkout
    def __init__(self, width: int, heads: int, encoder_width: int) -> None:
        super().__init__()
        self.num_attention_heads, self.attention_head_size = heads, width // heads
        self.query = nn.Linear(width, width)
        self.key, self.value = nn.Linear(encoder_width, width), nn.Linear(encoder_width, width)
        self.dropout = nn.Dropout(0.1)

    def forward(
        self, hidden_states, attention_mask=None, head_mask=None, encoder_hidden_states=None,
        encoder_attention_mask=None, past_key_value=None, output_attentions=False,
    ):  # fmt: skip
        x = (self.query(hidden_states), *(f(encoder_hidden_states) for f in (self.key, self.value)))
        q, k, v = (y.unflatten(2, (self.num_attention_heads, -1)).transpose(1, 2) for y in x)
        scores = q @ k.transpose(2, 3) / self.attention_head_size**0.5
        weights = (scores + encoder_attention_mask).softmax(-1)
        context = (self.dropout(weights) @ v).transpose(1, 2).flatten(2)
        return (context, weights, (k, v)) if output_attentions else (context, (k, v))


torch.manual_seed(0)
attention = BertSelfAttention(768, 12, 1408).eval()
x, tokens, mask = torch.randn(4, 16, 768), torch.randn(4, 156, 1408), torch.zeros(4, 1, 1, 156)
plain = attention(x, None, None, tokens, mask)[0]
acceleration = tdc_kernels.accelerate(BertSelfAttention)  # the class: every instance, old and new
ours = attention(x, None, None, tokens, mask)[0]
attention.train()(x, None, None, tokens, mask)  # dropout: the original runs
print(acceleration)
print(f"largest difference: {(ours - plain).abs().max():.1e}")

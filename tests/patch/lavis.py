# SPDX-License-Identifier: Apache-2.0
"""A Q-Former with the interface of LAVIS': same submodules, arguments and outputs, written anew.

Post-norm BERT layers; every second one has cross-attention for the query tokens. An attention
returns its context and then, always, its keys and values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass
class Config:
    hidden_size: int = 24
    encoder_width: int = 20
    num_attention_heads: int = 3
    num_hidden_layers: int = 4
    intermediate_size: int = 32
    attention_probs_dropout_prob: float = 0.0
    hidden_dropout_prob: float = 0.0
    position_embedding_type: str = "absolute"
    max_position_embeddings: int = 16


class BertSelfAttention(nn.Module):
    def __init__(self, config: Any, is_cross_attention: bool) -> None:
        super().__init__()
        self.config = config
        self.num_attention_heads = config.num_attention_heads
        self.attention_head_size = config.hidden_size // config.num_attention_heads
        self.all_head_size = config.hidden_size
        source = config.encoder_width if is_cross_attention else config.hidden_size
        self.query = nn.Linear(config.hidden_size, self.all_head_size)
        self.key = nn.Linear(source, self.all_head_size)
        self.value = nn.Linear(source, self.all_head_size)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)
        self.position_embedding_type = config.position_embedding_type
        if self.position_embedding_type == "relative_key":
            self.distance_embedding = nn.Embedding(
                2 * config.max_position_embeddings - 1, self.attention_head_size
            )
        self.save_attention = False

    def by_head(self, x: torch.Tensor) -> torch.Tensor:
        """``[B, L, H*d] -> [B, H, L, d]``."""
        return x.unflatten(2, (self.num_attention_heads, self.attention_head_size)).transpose(1, 2)

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        head_mask=None,
        encoder_hidden_states=None,
        encoder_attention_mask=None,
        past_key_value=None,
        output_attentions=False,
    ):
        is_cross_attention = encoder_hidden_states is not None
        source = encoder_hidden_states if is_cross_attention else hidden_states
        mask = encoder_attention_mask if is_cross_attention else attention_mask
        key, value = self.by_head(self.key(source)), self.by_head(self.value(source))
        if past_key_value is not None and not is_cross_attention:
            key = torch.cat([past_key_value[0], key], dim=2)
            value = torch.cat([past_key_value[1], value], dim=2)
        query = self.by_head(self.query(hidden_states))
        scores = query @ key.transpose(-1, -2)
        if self.position_embedding_type == "relative_key":
            rows = torch.arange(query.shape[2], device=query.device)[:, None]
            columns = torch.arange(key.shape[2], device=query.device)
            distance = rows - columns + self.config.max_position_embeddings - 1
            scores = scores + torch.einsum(
                "bhqd,qkd->bhqk", query, self.distance_embedding(distance)
            )
        scores = scores / math.sqrt(self.attention_head_size)
        if mask is not None:
            scores = scores + mask
        probability = scores.softmax(-1)
        if is_cross_attention and self.save_attention:
            self.attention_map = probability.detach()
        dropped = self.dropout(probability)
        if head_mask is not None:
            dropped = dropped * head_mask
        context = (dropped @ value).transpose(1, 2).flatten(2)
        outputs = (context, probability) if output_attentions else (context,)
        return (*outputs, (key, value))


class BertSelfOutput(nn.Module):
    def __init__(self, config: Any, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x, residual):
        return self.LayerNorm(self.dropout(self.dense(x)) + residual)


class BertAttention(nn.Module):
    def __init__(self, config: Any, is_cross_attention: bool = False) -> None:
        super().__init__()
        self.self = BertSelfAttention(config, is_cross_attention)
        self.output = BertSelfOutput(config, config.hidden_size)

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        head_mask=None,
        encoder_hidden_states=None,
        encoder_attention_mask=None,
        past_key_value=None,
        output_attentions=False,
    ):
        outputs = self.self(
            hidden_states,
            attention_mask,
            head_mask,
            encoder_hidden_states,
            encoder_attention_mask,
            past_key_value,
            output_attentions,
        )
        return (self.output(outputs[0], hidden_states), *outputs[1:])


class BertLayer(nn.Module):
    def __init__(self, config: Any, has_cross_attention: bool) -> None:
        super().__init__()
        self.attention = BertAttention(config)
        self.has_cross_attention = has_cross_attention
        if has_cross_attention:
            self.crossattention = BertAttention(config, is_cross_attention=True)
        self.intermediate_query = nn.Linear(config.hidden_size, config.intermediate_size)
        self.output_query = BertSelfOutput(config, config.intermediate_size)

    def forward(self, x, tokens, mask, output_attentions=False):
        """``x [B, Q, C]`` -> the same, this layer's (keys, values), its cross-attention weights."""
        x, *rest = self.attention(x, output_attentions=output_attentions)
        present, weights = rest[-1], ()
        if self.has_cross_attention:
            crossed = self.crossattention(
                x,
                None,
                None,
                tokens,
                mask,
                output_attentions=output_attentions,
            )
            x, weights = crossed[0], crossed[1:-1]
        x = self.output_query(nn.functional.gelu(self.intermediate_query(x)), x)
        return x, present, weights


class QFormer(nn.Module):
    def __init__(self, config: Any, num_queries: int = 5) -> None:
        super().__init__()
        self.query_tokens = nn.Parameter(torch.randn(1, num_queries, config.hidden_size))
        self.layer = nn.ModuleList(
            BertLayer(config, i % 2 == 0) for i in range(config.num_hidden_layers)
        )

    def forward(self, tokens, visible=None, output_attentions=False):
        """``tokens [B, N, D]``, ``visible [B, N]`` of ones and zeros -> queries, all weights."""
        x = self.query_tokens.expand(tokens.shape[0], -1, -1)
        mask = None
        if visible is not None:
            mask = (1.0 - visible[:, None, None].to(tokens.dtype)) * -10000.0
        weights = ()
        for layer in self.layer:
            x, _, more = layer(x, tokens, mask, output_attentions)
            weights += tuple(more)
        return x, weights

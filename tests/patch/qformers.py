# SPDX-License-Identifier: Apache-2.0
"""Small Q-Formers with random weights: those of transformers and one of LAVIS' form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lavis
import torch
import transformers
from torch import nn

FRAMES, QUERIES, TOKENS, WIDTH, DEPTH = 3, 5, 7, 24, 20
SIZES = {
    "vocab_size": 50,
    "hidden_size": WIDTH,
    "encoder_hidden_size": DEPTH,
    "intermediate_size": 32,
    "num_attention_heads": 3,
    "num_hidden_layers": 4,
    "cross_attention_frequency": 2,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
CROSS = 2  # layers of SIZES with cross-attention
NAMES = {
    "blip2": "Blip2",
    "instructblip": "InstructBlip",
    "instructblip_video": "InstructBlipVideo",
}
FAMILIES = (*NAMES, "lavis")


def qformer(family: str, implementation: str = "eager", **changes: Any) -> nn.Module:
    if family == "lavis":
        names = {"encoder_hidden_size": "encoder_width"}
        known = set(lavis.Config.__dataclass_fields__)
        sizes = {names.get(k, k): v for k, v in (SIZES | changes).items()}
        model: nn.Module = lavis.QFormer(
            lavis.Config(**{k: v for k, v in sizes.items() if k in known}), QUERIES
        )
    else:
        config = getattr(transformers, f"{NAMES[family]}QFormerConfig")(**(SIZES | changes))
        config._attn_implementation = implementation
        model = getattr(transformers, f"{NAMES[family]}QFormerModel")(config)
    for parameter in model.parameters():  # as initialised, attention is next to uniform
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def runner(family: str, masked: bool = False) -> Callable[..., torch.Tensor]:
    """A function of a Q-Former that runs it on random inputs, the same in every dtype."""
    tokens = torch.randn(FRAMES, TOKENS, DEPTH)
    embeds = torch.randn(FRAMES, QUERIES, WIDTH)
    ids = torch.randint(50, (FRAMES, 4))
    visible = torch.ones(FRAMES, TOKENS, dtype=torch.long)
    if masked:
        visible[0, 3:], visible[2, 1] = 0, 0

    def run(model: nn.Module, **more: Any) -> torch.Tensor:
        dtype = next(model.parameters()).dtype
        if family == "lavis":
            return model(tokens.to(dtype), visible, **more)[0]
        more |= {"query_embeds": embeds.to(dtype), "encoder_hidden_states": tokens.to(dtype)}
        if family != "blip2":
            more |= {"input_ids": ids, "attention_mask": torch.ones(FRAMES, QUERIES + 4)}
        return model(encoder_attention_mask=visible, **more).last_hidden_state

    return run


def attentions(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Name and module of every cross-attention."""
    ends = ("crossattention.attention", "crossattention.self")
    return [(name, m) for name, m in model.named_modules() if name.endswith(ends)]


def additive(visible: torch.Tensor) -> torch.Tensor:
    """``[F, N]`` bool -> ``[F, 1, 1, N]``, 0 and the lowest number, as transformers make it."""
    low = torch.finfo(torch.float32).min
    return torch.zeros(visible.shape).masked_fill(~visible, low)[:, None, None]

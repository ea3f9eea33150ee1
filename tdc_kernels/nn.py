# SPDX-License-Identifier: Apache-2.0
"""Modules over the ops, for models that want a layer and not a function."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tdc_kernels.ops.anchor_queries import anchor_queries
from tdc_kernels.ops.cross_attention import cross_attention, reference
from tdc_kernels.ops.segment_scenes import segment_scenes
from tdc_kernels.plain import is_plain_linear
from tdc_kernels.reduce import reduce_frames


class SceneSegmenter(nn.Module):
    """Cuts videos into at most ``num_scenes`` scenes by the similarity of neighbouring frames.

    Args:
        num_scenes: most scenes per video, ``>= 1``.
        threshold: if given, only pairs less similar than this are cut.
    """

    def __init__(self, num_scenes: int, threshold: float | None = None) -> None:
        super().__init__()
        if num_scenes < 1:
            raise ValueError(f"num_scenes: expected an integer >= 1, got {num_scenes}")
        self.num_scenes = num_scenes
        self.threshold = threshold

    def forward(
        self, features: torch.Tensor, cu_frames: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``features [F, ...]`` -> boundaries int32 ``[B, num_scenes - 1]``, similarity."""
        return segment_scenes(features, self.num_scenes - 1, cu_frames, self.threshold)

    def extra_repr(self) -> str:
        return f"num_scenes={self.num_scenes}, threshold={self.threshold}"


class FrameReducer(nn.Module):
    """Leaves out frames that look like their neighbours; arguments as in ``reduce_frames``."""

    def __init__(
        self,
        threshold: float = 0.83,
        window: int = 16,
        rule: str = "window",
        max_frames: int | None = None,
    ) -> None:
        super().__init__()
        self.threshold = threshold
        self.window = window
        self.rule = rule
        self.max_frames = max_frames

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``features [F, T, C]`` -> the frames kept ``[K, T, C]``, their numbers int64 ``[K]``."""
        options = {"window": self.window, "rule": self.rule, "max_frames": self.max_frames}
        kept = reduce_frames(features, self.threshold, **options)  # type: ignore[arg-type]
        return features[kept], kept

    def extra_repr(self) -> str:
        return (
            f"threshold={self.threshold}, window={self.window}, rule={self.rule!r},"
            f" max_frames={self.max_frames}"
        )


class AnchorQueries(nn.Linear):
    """Pools the anchors' tokens to ``num_queries`` rows and maps them to ``query_dim``.

    The weights are those of a ``torch.nn.Linear(token_dim, query_dim)``.
    """

    def __init__(
        self,
        token_dim: int,
        query_dim: int,
        num_queries: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(token_dim, query_dim, bias, device, dtype)
        self.num_queries = num_queries

    def forward(self, tokens: torch.Tensor, index: torch.Tensor | None = None) -> torch.Tensor:
        """``tokens [F, L, D]``, anchors ``[A]`` -> ``[A, num_queries, query_dim]``."""
        return anchor_queries(tokens, self.num_queries, self.weight, self.bias, index)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, num_queries={self.num_queries}"


class CrossAttention(nn.Module):
    """Multi-head attention of query groups over their frame's visual and audio tokens.

    Args:
        query_dim: width of the queries and of the output, divisible by ``num_heads``.
        token_dim: width of the visual and audio tokens.
        num_heads: attention heads.
        bias: whether the four linear maps have biases.
    """

    def __init__(
        self,
        query_dim: int,
        token_dim: int,
        num_heads: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(query_dim, query_dim, bias, device, dtype)
        self.key = nn.Linear(token_dim, query_dim, bias, device, dtype)
        self.value = nn.Linear(token_dim, query_dim, bias, device, dtype)
        self.out = nn.Linear(query_dim, query_dim, bias, device, dtype)

    def forward(
        self,
        x: torch.Tensor,
        visual: torch.Tensor,
        audio: torch.Tensor | None = None,
        *,
        w_key: torch.Tensor | None = None,
        w_value: torch.Tensor | None = None,
        **rows: Any,
    ) -> torch.Tensor:
        """``x [M, Q, query_dim]`` -> the same shape; the rest as in ``cross_attention``.

        ``w_key``, ``w_value``: in place of the module's own, for tokens of another width. Where
        ``key`` or ``value`` is more than a plain ``nn.Linear`` (LoRA, quantisation, hooks, ...) it
        is called, and no weights, strategy or backend can be given.
        """
        query = self.query(x.contiguous())
        if is_plain_linear(self.key, self.value):
            attended = cross_attention(
                query,
                visual,
                audio,
                w_key=self.key.weight if w_key is None else w_key,
                b_key=self.key.bias,
                w_value=self.value.weight if w_value is None else w_value,
                b_value=self.value.bias,
                num_heads=self.num_heads,
                **rows,
            )
        else:
            given = {"w_key": w_key, "w_value": w_value, **rows}
            for name in ("w_key", "w_value", "w_key_audio", "w_value_audio", "strategy", "backend"):
                if given.pop(name, None) is not None:
                    raise ValueError(
                        f"{name}: expected None, as key and value are not both plain nn.Linear"
                    )
            attended = self._attend_called(query, visual, audio, **given)
        return self.out(attended)

    def _attend_called(
        self,
        query: torch.Tensor,
        visual: torch.Tensor,
        audio: torch.Tensor | None,
        index: torch.Tensor | None = None,
        visual_lengths: torch.Tensor | None = None,
        audio_lengths: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """``cross_attention`` with keys and values by calls of their layers."""
        visual, audio, visual_lengths, audio_lengths, mask, index = reference.frames_asked_for(
            len(query), visual, audio, visual_lengths, audio_lengths, mask, index
        )
        hidden = reference.hidden_tokens(visual, audio, visual_lengths, audio_lengths, mask)
        tokens = reference.known(visual, visual_lengths).to(query.dtype)
        if audio is not None:
            heard = reference.known(audio, audio_lengths).to(query.dtype)
            tokens = torch.cat([tokens, heard], dim=1)  # one call: hooks see a layer's whole input
        tokens = tokens.contiguous()
        keys, values = (
            layer(tokens).to(query.dtype).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for layer in (self.key, self.value)
        )
        if index is not None:
            keys, values = keys[index], values[index]
            hidden = None if hidden is None else hidden[index]
        seen = None if hidden is None else ~hidden[:, None, None]  # [M, 1, 1, Nv+Na]
        query = query.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        attended = F.scaled_dot_product_attention(query, keys, values, attn_mask=seen)
        if seen is not None:  # a row without any token
            attended = attended.masked_fill(~seen.any(-1, keepdim=True), 0)
        return attended.transpose(1, 2).flatten(2)

# SPDX-License-Identifier: Apache-2.0
"""What the Q-Former's cross-attentions look at: the tokens of frames, and with which weights.

Inside the Q-Former nobody else reads frame tokens, so a linear map in front of the cross-attention
can be taken into its weights: ``W_k (P x + b) = [W_k P | W_k b] [x; 1]``. The audio projection is
one such map, the visual projector's last layer (``VisualTokens.token_map``) another. Folding costs
one product of weights and is done once per load; where gradients are wanted the maps are applied.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..encoder.features import VideoFeatures
from ..tensor_cache import TensorCache
from .qformer import CrossAttention
from .speedups import Savings

Look = Callable[[CrossAttention, Tensor], Tensor]
Pair = tuple[Tensor, Tensor]  # weights of keys and values
TENSORS = ("visual", "audio", "visual_lengths", "audio_lengths")
ALIGN = 8  # widths are multiples of it, for wide loads


class FrameTokens:
    """The tokens of a batch's frames, ready to be looked at.

    Args:
        features: of the videos.
        audio_proj: maps audio tokens to the width of the visual ones; None for a model without
            sound.
        blocks: the cross-attentions.
        savings: which savings to take.
        cache: where folded weights are kept; None where gradients are wanted, which also means
            that nothing is folded.
    """

    def __init__(
        self,
        features: VideoFeatures,
        audio_proj: nn.Linear | None,
        blocks: Sequence[CrossAttention],
        savings: Savings,
        cache: TensorCache | None,
    ) -> None:
        self.features: VideoFeatures | None = features
        self.audio_proj = audio_proj
        self.blocks = blocks
        self.cache = cache
        self.savings = savings
        self.token_map = features.visual.token_map
        self.visual, self.audio = features.visual.values, features.audio if audio_proj else None
        self.visual_lengths = lengths_tensor(features.visual_lengths, self.visual)
        self.audio_lengths = None
        self.of_visual: list[Pair] | None = None
        self.of_audio: list[Pair] | None = None
        if self.token_map is not None:
            self.of_visual = self._folded("visual", self.token_map, None)
        if self.audio is not None and audio_proj is not None:
            self.audio_lengths = lengths_tensor(features.audio_lengths, self.audio)
            if cache is not None and savings.fold_audio:
                self.of_audio = self._folded("audio", audio_proj.weight, audio_proj.bias)
                self.audio = self._kept("audio tokens", [self.audio], self._with_ones)
            else:
                self.audio = audio_proj(self.audio.to(audio_proj.weight.dtype))

    def tensors(self) -> dict[str, Tensor | None]:
        """What :meth:`look` reads of the video."""
        return {name: getattr(self, name) for name in TENSORS}

    def over(self, tensors: Mapping[str, Tensor | None]) -> FrameTokens:
        """The same weights over other tensors of the same kinds, of no particular video."""
        other = copy.copy(self)
        other.features = None
        for name in TENSORS:
            setattr(other, name, tensors[name])
        return other

    def look(self, index: Tensor) -> Look:
        """Cross-attention of rows over the frames ``index [M]``."""
        if self.savings.joint_keys_values and self.cache is not None:
            return self._look_at_keys_values(index)
        rows = {
            "index": index,
            "visual_lengths": self.visual_lengths,
            "audio_lengths": self.audio_lengths,
        }

        def look(block: CrossAttention, x: Tensor) -> Tensor:
            number = self.blocks.index(block)
            weights: dict[str, Any] = {}
            if self.of_visual is not None:
                weights["w_key"], weights["w_value"] = self.of_visual[number]
            key, value = self._of_audio(number)
            if self.audio is not None and (self.of_visual is not None or self.of_audio is not None):
                weights |= {"w_key_audio": key, "w_value_audio": value}
            return block(x, self.visual, self.audio, **weights, **rows)

        return look

    def _of_audio(self, number: int) -> Pair:
        return (self.of_audio or self._own())[number]

    def _own(self) -> list[Pair]:
        return [(block.key.weight, block.value.weight) for block in self.blocks]

    def _kept(self, name: str, sources: Sequence[Tensor], compute: Callable[[], Any]) -> Any:
        assert self.cache is not None
        if not self.savings.cache:
            return compute()
        return self.cache.get(name, sources, compute)

    def _folded(self, name: str, weight: Tensor, bias: Tensor | None) -> list[Pair]:
        """Weights of all blocks for tokens that the map ``weight``, ``bias`` is still before; the
        bias becomes a column for a token's 1."""

        def compute() -> list[Pair]:
            acc = torch.promote_types(weight.dtype, torch.float32)
            columns = [weight.to(acc)] + ([] if bias is None else [bias.to(acc)[:, None]])
            projection = torch.cat(columns, dim=1)
            projection = F.pad(projection, (0, -projection.shape[1] % ALIGN))
            return [
                (
                    (key.to(acc) @ projection).to(key.dtype),
                    (value.to(acc) @ projection).to(key.dtype),
                )
                for key, value in self._own()
            ]

        assert self.cache is not None
        own = [w for pair in self._own() for w in pair]
        sources = [weight, *([] if bias is None else [bias]), *own]
        return self.cache.get(f"{name} weights", sources, compute)

    def _with_ones(self) -> Tensor:
        """``[F, Na, Ca]`` with a column of ones behind, padded with zeros."""
        assert self.features is not None and self.features.audio is not None
        audio = F.pad(self.features.audio, (0, 1), value=1.0)
        return F.pad(audio, (0, -audio.shape[2] % ALIGN))

    def _look_at_keys_values(self, index: Tensor) -> Look:
        keys_values, mask = self._kept_keys_values(index)

        def look(block: CrossAttention, x: Tensor) -> Tensor:
            keys, values = keys_values[self.blocks.index(block)]
            return block.attend(x, keys, values, mask)

        return look

    def _kept_keys_values(self, index: Tensor) -> tuple[list[Pair], Tensor | None]:
        """Per block keys and values ``[M, N, Dq]``, and which of the N tokens count (None: all)."""
        assert self.cache is not None and self.features is not None
        features = self.features
        tokens = [x for x in (*features.visual.tensors(), features.audio) if x is not None]
        layers = [m for block in self.blocks for m in (block.key, block.value)]
        layers += [] if self.audio_proj is None else [self.audio_proj]
        sources = [*tokens, *(p for layer in layers for p in layer.parameters())]

        def compute() -> tuple[list[Pair], Tensor | None]:
            parts, seen = [], []
            for tokens, lengths, folded in (
                (self.visual, self.visual_lengths, self.of_visual),
                (self.audio, self.audio_lengths, self.of_audio),
            ):
                if tokens is None:
                    continue
                pairs = folded or self._own()
                weight = torch.cat([w for pair in pairs for w in pair])  # [blocks * 2 * Dq, D]
                parts.append(_in_parts(tokens, index, weight))
                places = torch.arange(tokens.shape[1], device=tokens.device)
                stop = tokens.shape[1] if lengths is None else lengths[index][:, None]
                seen.append((places < stop).expand(len(index), -1))
            biases = [b for block in self.blocks for b in (block.key.bias, block.value.bias)]
            mapped = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
            mapped += torch.cat([b.detach() for b in biases])
            mapped = mapped.unflatten(2, (len(self.blocks), 2, -1))  # [M, N, blocks, 2, Dq]
            pairs = [(mapped[:, :, i, 0], mapped[:, :, i, 1]) for i in range(len(self.blocks))]
            every = self.visual_lengths is None and self.audio_lengths is None
            return pairs, None if every else torch.cat(seen, dim=1)[:, None, None]

        if not self.savings.cache:
            return compute()
        key = (tuple(index.tolist()), features.visual_lengths, features.audio_lengths)
        return self.cache.get("keys and values", sources, compute, key)


def _in_parts(tokens: Tensor, index: Tensor, weight: Tensor, frames: int = 16) -> Tensor:
    """``tokens[index] weight^T``, without all of ``tokens[index]`` at once."""
    out = weight.new_empty(len(index), tokens.shape[1], len(weight))
    for rows in torch.arange(len(index), device=index.device).split(frames):
        torch.matmul(
            tokens[index[rows]].to(weight.dtype), weight.t(), out=out[rows[0] : rows[-1] + 1]
        )
    return out


def lengths_tensor(lengths: tuple[int, ...], tokens: Tensor) -> Tensor | None:
    """int32 ``[F]`` on the tokens' device; None when every slot is filled."""
    if all(length == tokens.shape[1] for length in lengths):
        return None
    return torch.tensor(lengths, dtype=torch.int32, device=tokens.device)

# SPDX-License-Identifier: Apache-2.0
"""What the Q-Former's cross-attentions attend to: the tokens of frames, and with which weights.

Inside the Q-Former nobody else reads frame tokens, so a linear map in front of the cross-attention
can be folded into its weights: ``W_k (P x + b) = [W_k P | W_k b] [x; 1]``. The audio projection is
one such map, the visual projector's last layer (``VisualTokens.token_map``) another. Folding costs
one product of weights and is done once per load.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tdc_kernels.nn import CrossAttention
from tdc_kernels.plain import is_plain_linear

from ..tensor_cache import TensorCache

Blocks = Sequence[CrossAttention | None]  # of every layer; None: a layer without
Pair = tuple[Tensor, Tensor]  # keys and values, or their weights
TENSORS = ("visual", "audio", "index", "visual_lengths", "audio_lengths")
ALIGN = 8  # widths are multiples of it, for wide loads


@dataclass(frozen=True)
class FrameTokens:
    """Tokens for every layer; layer i takes entry i of ``weights`` and of ``keys_values``.

    Attributes:
        visual: ``[F, Nv, Wv]`` of all frames.
        audio: ``[F, Na, Wa]``, or None without sound.
        index: int64 ``[M]``, the frame that each row attends to; None: row m to frame m.
        visual_lengths, audio_lengths: int32 ``[F]`` valid tokens; None: all.
        weights: per layer what replaces its own weights, by the names of
            :func:`tdc_kernels.cross_attention`; empty: nothing.
        keys_values: per layer keys and values ``[M, N, Dq]``, in place of the tokens if computed
            beforehand; ``mask``: bool ``[M, 1, 1, N]``, True = valid, None = all.
    """

    visual: Tensor
    audio: Tensor | None = None
    index: Tensor | None = None
    visual_lengths: Tensor | None = None
    audio_lengths: Tensor | None = None
    weights: Sequence[dict[str, Tensor]] = ()
    keys_values: Sequence[Pair | None] = ()
    mask: Tensor | None = None

    def tensors(self) -> dict[str, Tensor | None]:
        """What depends on the video."""
        return {name: getattr(self, name) for name in TENSORS}

    def arguments(self, layer: int) -> dict[str, Any]:
        """Of a layer's cross-attention, beside the queries."""
        return self.tensors() | (self.weights[layer] if self.weights else {})

    def select(self, rows: Tensor) -> FrameTokens:
        """Some of the rows."""
        assert self.index is not None
        return replace(
            self,
            index=self.index[rows],
            keys_values=[pair and (pair[0][rows], pair[1][rows]) for pair in self.keys_values],
            mask=None if self.mask is None else self.mask[rows],
        )


def readable(layers: Iterable[Any]) -> bool:
    """Whether keys and values of all cross-attentions of these layers may be computed from their
    weights."""
    blocks = [block for layer in layers if (block := layer.cross_attention) is not None]
    return all(isinstance(b, CrossAttention) and is_plain_linear(b.key, b.value) for b in blocks)


def folded_weights(
    cache: TensorCache,
    blocks: Blocks,
    token_map: Tensor | None,
    audio_proj: nn.Linear | None,
    heard: bool,
) -> list[dict[str, Tensor]]:
    """``FrameTokens.weights`` for tokens that are still in front of a map.

    Args:
        cache: where they are kept.
        token_map: of the visual tokens; None: they are final.
        audio_proj: of the audio tokens, which then come :func:`with_ones`; None: they are final.
        heard: whether there are audio tokens.
    """
    if token_map is None and audio_proj is None:
        return [{} for _ in blocks]
    own = [None if b is None else (b.key.weight, b.value.weight) for b in blocks]
    visual: list[Pair | None] = [None] * len(own)
    audio: list[Pair | None] = visual
    if token_map is not None:
        visual, audio = _folded(cache, "visual weights", own, token_map), own
    if audio_proj is not None:
        audio = _folded(cache, "audio weights", own, audio_proj.weight, audio_proj.bias)
    weights: list[dict[str, Tensor]] = []
    for of_visual, of_audio in zip(visual, audio, strict=True):
        weights.append({})
        if of_visual is not None:
            weights[-1] |= zip(("w_key", "w_value"), of_visual, strict=True)
        if of_audio is not None and heard:
            weights[-1] |= zip(("w_key_audio", "w_value_audio"), of_audio, strict=True)
    return weights


def _folded(
    cache: TensorCache,
    name: str,
    own: list[Pair | None],
    weight: Tensor,
    bias: Tensor | None = None,
) -> list[Pair | None]:
    """Weights of all layers for tokens that the map ``weight``, ``bias`` is still before; the bias
    becomes a column for a token's 1."""

    def compute() -> list[Pair | None]:
        acc = torch.promote_types(weight.dtype, torch.float32)
        columns = [weight.to(acc)] + ([] if bias is None else [bias.to(acc)[:, None]])
        projection = torch.cat(columns, dim=1)
        projection = F.pad(projection, (0, -projection.shape[1] % ALIGN))

        def fold(w: Tensor) -> Tensor:
            return (w.to(acc) @ projection).to(w.dtype)

        return [pair and (fold(pair[0]), fold(pair[1])) for pair in own]

    layers = [w for pair in own if pair for w in pair]
    return cache.get(name, [weight, *([] if bias is None else [bias]), *layers], compute)


def with_ones(audio: Tensor) -> Tensor:
    """``[F, Na, Ca]`` with a column of ones behind, padded with zeros."""
    audio = F.pad(audio, (0, 1), value=1.0)
    return F.pad(audio, (0, -audio.shape[2] % ALIGN))


def sources(frames: FrameTokens, blocks: Blocks) -> list[Tensor]:
    """What keys and values are computed from."""
    layers = [p for b in blocks if b for m in (b.key, b.value) for p in m.parameters()]
    folded = [w for layer in frames.weights for w in layer.values()]
    return [x for x in (frames.visual, frames.audio) if x is not None] + layers + folded


def keys_values(frames: FrameTokens, blocks: Blocks) -> tuple[list[Pair | None], Tensor | None]:
    """``FrameTokens.keys_values`` and ``mask``, of all layers by one product per kind of token."""
    assert frames.index is not None
    used = [(b, frames.arguments(layer)) for layer, b in enumerate(blocks) if b is not None]
    parts, seen = [], []
    for tokens, lengths, kind in (
        (frames.visual, frames.visual_lengths, ""),
        (frames.audio, frames.audio_lengths, "_audio"),
    ):
        if tokens is None:
            continue
        weights = [
            given.get(f"w_{name}{kind}", getattr(block, name).weight)
            for block, given in used
            for name in ("key", "value")
        ]
        parts.append(_in_parts(tokens, frames.index, torch.cat(weights)))  # [M, N, layers * 2 * Dq]
        places = torch.arange(tokens.shape[1], device=tokens.device)
        stop = tokens.shape[1] if lengths is None else lengths[frames.index][:, None]
        seen.append((places < stop).expand(len(frames.index), -1))
    mapped = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
    mapped += torch.cat([m.bias.detach() for block, _ in used for m in (block.key, block.value)])
    mapped = mapped.unflatten(2, (len(used), 2, -1))  # [M, N, layers, 2, Dq]
    pairs = iter([(one[:, :, 0], one[:, :, 1]) for one in mapped.unbind(2)])
    every = frames.visual_lengths is None and frames.audio_lengths is None
    mask = None if every else torch.cat(seen, dim=1)[:, None, None]
    return [None if b is None else next(pairs) for b in blocks], mask


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

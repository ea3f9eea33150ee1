# SPDX-License-Identifier: Apache-2.0
"""Visual tokens of frames, together with the linear map that is still to be applied to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class VisualTokens:
    """What the connector makes of frames, before the visual projector's last layer.

    Only static frames need that layer's result: in front of the Q-Former's cross-attentions the map
    can be folded into their weights. Whoever needs final tokens calls :meth:`final`.

    Attributes:
        values: ``[F, N, W]``; ``N`` is the largest of the batch, shorter frames are zero-padded.
        token_map: ``[D, W]``, still to be applied; None: the values are final, ``W = D``.
    """

    values: Tensor
    token_map: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        """What the final tokens depend on."""
        return [self.values] if self.token_map is None else [self.values, self.token_map]

    def final(self, frames: Tensor | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """``[F, N, D]`` tokens of all frames or of the ``frames`` asked for; ``dtype``: computed in
        where a map is still to be applied, by default the values' own."""
        values = self.values
        values = values if frames is None else values[frames.to(values.device).long()]
        return (
            values if self.token_map is None else self.apply_map(values.to(dtype or values.dtype))
        )

    def apply_map(self, values: Tensor) -> Tensor:
        """``[..., W] -> [..., D]``, of means of tokens as well."""
        return values if self.token_map is None else F.linear(values, self.token_map.to(values))

    def to(self, device: torch.device | str) -> VisualTokens:
        token_map = None if self.token_map is None else self.token_map.to(device)
        return VisualTokens(self.values.to(device), token_map)

    def select(self, frames: Tensor | slice) -> VisualTokens:
        """Some of the frames: a view where they are a slice."""
        return replace(self, values=self.values[frames])

    @staticmethod
    def join(parts: Sequence[VisualTokens]) -> VisualTokens:
        """Frames of several videos behind each other, padded to the longest; all parts have the
        same map."""
        if len(parts) == 1:
            return parts[0]
        longest = max(part.values.shape[1] for part in parts)
        padded = [F.pad(part.values, (0, 0, 0, longest - part.values.shape[1])) for part in parts]
        return replace(parts[0], values=torch.cat(padded))

# SPDX-License-Identifier: Apache-2.0
"""Frozen image encoders: pixels -> ``token_grid**2`` tokens per frame (TDC paper section 3.1).

DINOv2 gives its last hidden state without the class token. SigLIP gives its tokens *before* its
last LayerNorm, which is what the connector was trained on. Both see 27 x 27 patches, resized to
24 x 24.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    Dinov2Config,
    Dinov2Model,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
)

from ..errors import InputError, listed
from ..media.pixels import normalize_pixels

PATCHES_PER_SIDE = 27  # 384 // 14 for SigLIP-so400m; DINOv2 is run at 27 * 14 = 378 to match


class SiglipTrunk(SiglipVisionModel):
    """SigLIP's vision transformer without its last LayerNorm and its pooling head."""

    _keys_to_ignore_on_load_unexpected = [  # noqa: RUF012  (declared so by the base class)
        r"post_layernorm",
        r"head\.",
        r"text_model",
        r"logit_",
    ]

    def __init__(self, config: SiglipVisionConfig) -> None:
        config = copy.deepcopy(config)
        config.vision_use_head = False
        super().__init__(config)
        self.post_layernorm: nn.Module = nn.Identity()  # type: ignore[assignment]


class VisionTower(nn.Module):
    """One image encoder and the resize of its patch grid.

    Args:
        config: ``SiglipVisionConfig`` or ``Dinov2Config`` of transformers.
        token_grid: tokens per side that come out.
        image_size: pixels per side that go in. Default: SigLIP's own; for DINOv2 the size that
            gives 27 patches a side (its position table, made for 518 pixels, is interpolated).
        image_mean, image_std: normalisation per channel. Default: the published processors'.

    Raises:
        InputError: a config of another family.
    """

    def __init__(
        self,
        config: SiglipVisionConfig | Dinov2Config,
        token_grid: int = 24,
        image_size: int | None = None,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if isinstance(config, SiglipVisionConfig):
            self.model: nn.Module = SiglipTrunk(config)
            default_size = _side(config.image_size)
            mean, std = IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD
        elif isinstance(config, Dinov2Config):
            self.model = Dinov2Model(config)
            default_size = PATCHES_PER_SIDE * _side(config.patch_size)
            mean, std = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
        else:
            raise InputError(
                f"a vision tower needs a SigLIP or DINOv2 config, got {type(config).__name__}"
            )
        self.is_siglip = isinstance(config, SiglipVisionConfig)
        self.token_grid = token_grid
        self.image_size = default_size if image_size is None else image_size
        self.image_mean = tuple(mean if image_mean is None else image_mean)
        self.image_std = tuple(std if image_std is None else image_std)
        self.hidden_size: int = config.hidden_size
        self.patch_size = _side(config.patch_size)
        self._interpolates_positions = self.image_size != _side(config.image_size)

    @property
    def num_tokens(self) -> int:
        """Tokens per frame."""
        return self.token_grid**2

    @property
    def dtype(self) -> torch.dtype:
        """Of pixels and tokens; quantised weights have integers."""
        return next(p.dtype for p in self.model.parameters() if p.is_floating_point())

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        token_grid: int = 24,
        image_size: int | None = None,
        **kwargs: Any,
    ) -> VisionTower:
        """Load published weights: a SigLIP (vision part or whole) or a DINOv2 checkpoint.

        Args:
            name_or_path: folder or hub name, as for ``AutoModel.from_pretrained``.
            token_grid, image_size: see the class.
            **kwargs: handed to transformers (``dtype``, ``device_map``, ...).

        Raises:
            InputError: the checkpoint is of another family or lacks tensors.
        """
        config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)
        config = getattr(config, "vision_config", config)
        with torch.device("meta"):
            tower = cls(config, token_grid, image_size)
        loader: Any = SiglipTrunk if tower.is_siglip else Dinov2Model
        kwargs["output_loading_info"] = True
        tower.model, found = loader.from_pretrained(name_or_path, config=config, **kwargs)
        if found["missing_keys"]:  # transformers would leave them random
            missing = listed(sorted(found["missing_keys"]), 3)
            raise InputError(f"the tower {name_or_path} lacks {missing}; copy or download it again")
        return tower.eval()

    def forward(self, pixel_values: Tensor, chunk_size: int = 64) -> Tensor:
        """Encode frames.

        Args:
            pixel_values: ``[T, 3, H, W]``; normalised floats, or uint8 from :func:`resize_frames`,
                which are normalised chunk by chunk on their device (a quarter of the memory).
            chunk_size: frames encoded at a time; bounds the peak memory, changes nothing else.

        Returns:
            ``[T, token_grid**2, C]`` in the model's dtype, row-major.
        """
        if pixel_values.shape[0] == 0:
            return pixel_values.new_zeros((0, self.num_tokens, self.hidden_size), dtype=self.dtype)
        chunks = [self._encode(chunk) for chunk in pixel_values.split(chunk_size)]
        return chunks[0] if len(chunks) == 1 else torch.cat(chunks)

    def _encode(self, pixels: Tensor) -> Tensor:
        if pixels.dtype == torch.uint8:
            pixels = normalize_pixels(pixels, self.image_mean, self.image_std)
        pixels = pixels.to(self.dtype)
        rows, cols = pixels.shape[-2] // self.patch_size, pixels.shape[-1] // self.patch_size
        if self.is_siglip:
            output = self.model(pixels, interpolate_pos_encoding=self._interpolates_positions)
            tokens = output.last_hidden_state  # [T, rows * cols, C]
        else:
            tokens = self.model(pixels).last_hidden_state[:, 1:]  # the class token stands first
        return resize_token_grid(tokens, (rows, cols), self.token_grid)


def _side(size: int | Sequence[int]) -> int:
    """A size that a config may give as one number or as two equal ones."""
    return size if isinstance(size, int) else int(size[0])


def resize_token_grid(tokens: Tensor, grid: tuple[int, int], token_grid: int) -> Tensor:
    """Bilinear resize of a token map, in fp32 (corners not aligned, no antialiasing).

    Args:
        tokens: ``[T, rows * cols, C]``.
        grid: ``(rows, cols)``.
        token_grid: cells per side that come out.

    Returns:
        ``[T, token_grid**2, C]`` in the dtype of ``tokens``.
    """
    if grid == (token_grid, token_grid):
        return tokens
    maps = tokens.transpose(1, 2).unflatten(-1, grid).float()  # [T, C, rows, cols]
    maps = F.interpolate(maps, size=(token_grid, token_grid), mode="bilinear", align_corners=False)
    return maps.flatten(2).transpose(1, 2).to(tokens.dtype).contiguous()

# SPDX-License-Identifier: Apache-2.0
"""Frames of any size to the square pictures that the towers take."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import InputError


def check_frames(frames: np.ndarray) -> None:
    """Raises `InputError` unless ``frames`` are uint8 ``[T, H, W, 3]``."""
    if (
        frames.dtype != np.uint8
        or frames.ndim != 4
        or frames.shape[-1] != 3
        or 0 in frames.shape[1:]
    ):
        raise InputError(
            f"frames must be uint8 [T, H, W, 3], got {frames.dtype} {list(frames.shape)}"
        )


def resize_frames(frames: np.ndarray, image_size: int, fill: Sequence[int]) -> Tensor:
    """Pad frames to a centred square and resize them (Pillow, bicubic with antialiasing).

    Args:
        frames: uint8 ``[T, H, W, 3]``, RGB.
        image_size: pixels per side that come out.
        fill: colour of the padding, three values 0..255.

    Returns:
        uint8 ``[T, 3, image_size, image_size]``.

    Raises:
        InputError: another dtype or shape.
    """
    check_frames(frames)
    count, height, width, _ = frames.shape
    resized = np.empty((count, image_size, image_size, 3), dtype=np.uint8)
    side = max(height, width)
    corner = ((side - width) // 2, (side - height) // 2)

    def resize_one(index: int) -> None:
        image = Image.fromarray(frames[index])
        if width != height:
            square = Image.new("RGB", (side, side), tuple(fill))
            square.paste(image, corner)
            image = square
        if side != image_size:
            image = image.resize((image_size, image_size), Image.Resampling.BICUBIC)
        resized[index] = np.asarray(image)

    # Pillow releases the GIL while it resizes.
    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        for _ in pool.map(resize_one, range(count)):
            pass
    return torch.from_numpy(resized).permute(0, 3, 1, 2).contiguous()


def normalize_pixels(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 ``[T, 3, H, W]`` -> ``(pixels / 255 - mean) / std``, fp32 of the same shape."""
    shift = torch.tensor(mean, dtype=torch.float32, device=pixels.device)[:, None, None]
    scale = torch.tensor(std, dtype=torch.float32, device=pixels.device)[:, None, None]
    return (pixels.float() / 255 - shift) / scale


def padding_color(mean: Sequence[float]) -> tuple[int, ...]:
    """The tower's mean colour as 0..255 integers, rounded down."""
    return tuple(int(255 * channel) for channel in mean)

# SPDX-License-Identifier: Apache-2.0
"""Colour and edges of frames: features for the segmentation that need no weights.

Where no DINOv2 is at hand, two histograms a frame find the cuts of real footage
(docs/segmentation.md has the figures). They take the place of the DINOv2 tokens in
:func:`tdc.encoder.segment.segment`; a language model cannot read them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..media.pixels import check_frames

SIDE = 64  # pixels a side of the picture that is measured
MAX_SIDE = 128  # pixels: more of a frame need not be decoded, `read_video(..., max_side=MAX_SIDE)`
HUES, SATURATIONS, VALUES = 16, 4, 4
CELLS, ORIENTATIONS = 4, 8  # cells per side of the picture, directions per cell
SIZE = HUES * SATURATIONS * VALUES + CELLS**2 * ORIENTATIONS

# Set by the training half of the footage in docs/segmentation.md: cuts are where the cosine of
# neighbouring frames is below the first, of cuts closer than the second (s) the deepest.
THRESHOLD = 0.89
MIN_SCENE = 0.6


def color_features(frames: np.ndarray) -> Tensor:
    """Square roots of a colour and an edge histogram, each of unit length, side by side.

    The cosine of two frames is then the mean of two Bhattacharyya coefficients, in 0..1. A frame
    without any edge has a zero edge half: its cosine is at most ``1 / sqrt(2)`` with a frame that
    has edges, and 1 with another of the same colours.

    Args:
        frames: uint8 ``[T, H, W, 3]``, RGB, of any size; scaled to 64 x 64 without padding.

    Returns:
        fp32 ``[T, 384]``: 16 hues x 4 saturations x 4 values, then 4 x 4 cells x 8 directions.

    Raises:
        InputError: another dtype or shape of ``frames``.
    """
    check_frames(frames)
    features = np.empty((len(frames), SIZE), dtype=np.float32)
    for row, picture in zip(features, _pictures(frames), strict=True):
        row[:] = np.concatenate([_colors(picture), _edges(picture)])
    return torch.from_numpy(features)


def _pictures(frames: np.ndarray) -> Iterator[Image.Image]:
    for frame in frames:
        yield Image.fromarray(frame).resize((SIDE, SIDE), Image.Resampling.BOX)


def _colors(picture: Image.Image) -> np.ndarray:
    """``[256]``: shares of the pixels by hue, saturation and value."""
    hue, saturation, value = np.asarray(picture.convert("HSV")).astype(np.intp).transpose(2, 0, 1)
    bins = (hue * HUES // 256 * SATURATIONS + saturation * SATURATIONS // 256) * VALUES
    bins += value * VALUES // 256
    return _unit(np.bincount(bins.ravel(), minlength=HUES * SATURATIONS * VALUES))


def _edges(picture: Image.Image) -> np.ndarray:
    """``[128]``: strength of the brightness gradient by cell and direction."""
    down, right = np.gradient(np.asarray(picture.convert("L"), dtype=np.float32))
    # Rounded: level and upright edges, the most frequent ones, are in the middle of a bin.
    turn = np.arctan2(down, right) / (2 * np.pi)
    direction = np.rint(turn * ORIENTATIONS).astype(np.intp) % ORIENTATIONS
    cell = np.arange(SIDE) * CELLS // SIDE
    bins = (cell[:, None] * CELLS + cell) * ORIENTATIONS + direction
    strength = np.hypot(down, right)
    size = CELLS**2 * ORIENTATIONS
    return _unit(np.bincount(bins.ravel(), weights=strength.ravel(), minlength=size))


def _unit(histogram: np.ndarray) -> np.ndarray:
    """Square roots, scaled to unit length; zeros stay zeros."""
    total = histogram.sum()
    return np.sqrt(histogram / total) if total else np.zeros(len(histogram))


def min_scene_frames(fps: float) -> int:
    """``MIN_SCENE`` in samples, at least 1."""
    return max(1, math.ceil(MIN_SCENE * fps - 1e-6))

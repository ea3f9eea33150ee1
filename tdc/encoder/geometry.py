# SPDX-License-Identifier: Apache-2.0
"""Which cells of a token grid show the picture and which show padding.

Frames are padded to a centred square before they are encoded, so of an ``n x n`` token grid only a
band of rows (landscape) or columns (portrait) shows the picture. The connector drops the rest and
keeps padding out of its attention windows. Everything here is integer geometry on the host; nothing
depends on pixel values.

Sizes are always ``(width, height)`` of the upright frame. The released TDC checkpoints were trained
with the two swapped for videos; reproducing them is the caller's business: pass
``kept_box(height, width, grid)``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Box(NamedTuple):
    """Half-open ranges of grid rows and columns."""

    row0: int
    row1: int
    col0: int
    col1: int

    @property
    def rows(self) -> int:
        return self.row1 - self.row0

    @property
    def cols(self) -> int:
        return self.col1 - self.col0

    @property
    def num_tokens(self) -> int:
        """Length of the frame's token sequence, newline column included."""
        return frame_token_count(self.rows, self.cols)


def kept_box(width: int, height: int, grid: int) -> Box:
    """Cells of a ``grid x grid`` token map that show a ``width x height`` picture.

    The padding is half of what the shorter side leaves free, rounded down, the same on both ends.
    An aspect ratio so extreme that nothing would stay keeps the full grid. A 640 x 360 frame keeps
    rows 3..8 of 12.

    Args:
        width, height: size of the frame in pixels, positive.
        grid: cells per side.

    Returns:
        Half-open row and column ranges.

    Raises:
        ValueError: a size or the grid is not positive.
    """
    if width <= 0 or height <= 0:
        raise ValueError(f"width, height must be positive, got {width} x {height}")
    if grid <= 0:
        raise ValueError(f"grid must be positive, got {grid}")
    # Double arithmetic in this order: 100 * (12 / 1200) must truncate to what the checkpoints saw.
    if width > height:
        pad = (grid - int(height * (grid / width))) // 2
        box = Box(pad, grid - pad, 0, grid)
    else:
        pad = (grid - int(width * (grid / height))) // 2
        box = Box(0, grid, pad, grid - pad)
    if box.rows <= 0 or box.cols <= 0:
        return Box(0, grid, 0, grid)
    return box


def frame_token_count(rows: int, cols: int) -> int:
    """Tokens of one frame: ``rows x cols`` cells and one newline token behind each row."""
    return rows * (cols + 1)


def to_windows(tokens: Tensor, token_grid: int, query_grid: int) -> Tensor:
    """Cut a row-major token map into ``query_grid x query_grid`` windows.

    Args:
        tokens: ``[..., token_grid**2, C]``.
        token_grid, query_grid: cells per side; the second divides the first.

    Returns:
        ``[..., query_grid**2, k**2, C]`` with ``k = token_grid // query_grid``, windows and the
        cells inside them row-major.

    Raises:
        ValueError: the grids do not divide, or the number of tokens is not ``token_grid**2``.
    """
    k = window_side(token_grid, query_grid)
    if tokens.shape[-2] != token_grid**2:
        raise ValueError(
            f"tokens must have {token_grid**2} rows ({token_grid} x {token_grid}), "
            f"got {tokens.shape[-2]}"
        )
    lead, channels = tokens.shape[:-2], tokens.shape[-1]
    tiles = tokens.reshape(*lead, query_grid, k, query_grid, k, channels)
    return tiles.transpose(-4, -3).reshape(*lead, query_grid**2, k * k, channels)


def window_side(token_grid: int, query_grid: int) -> int:
    """Side ``k`` of a query's window on a tower's grid.

    Raises:
        ValueError: ``query_grid`` does not divide ``token_grid``.
    """
    if query_grid <= 0 or token_grid % query_grid:
        raise ValueError(f"query_grid must divide the token grid {token_grid}, got {query_grid}")
    return token_grid // query_grid


def window_mask(width: int, height: int, token_grid: int, query_grid: int) -> Tensor:
    """Which tokens of each window show the picture.

    A window that lies in the padding altogether is all True: its query is dropped later, and a
    softmax over nothing would be NaN.

    Args:
        width, height: size of the frame in pixels.
        token_grid, query_grid: cells per side of the tower's map and of the queries.

    Returns:
        bool ``[query_grid**2, k**2]`` on the CPU.
    """
    box = kept_box(width, height, token_grid)
    kept = torch.zeros(token_grid, token_grid, dtype=torch.bool)
    kept[box.row0 : box.row1, box.col0 : box.col1] = True
    mask = to_windows(kept.reshape(-1, 1), token_grid, query_grid).squeeze(-1)
    return mask | ~mask.any(-1, keepdim=True)

# SPDX-License-Identifier: Apache-2.0
"""Crop boxes, attention windows and pooling bins, against recordings and by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tdc.encoder.geometry import (
    Box,
    frame_token_count,
    kept_box,
    to_windows,
    window_mask,
    window_side,
)

UNITS = Path(__file__).parents[1] / "parity" / "data" / "units.npz"
SIDES = st.integers(1, 5000)


@pytest.fixture(scope="module")
def units():
    return np.load(UNITS)


@pytest.mark.parametrize("grid", [4, 12, 24])
def test_boxes_are_the_recorded_ones(units, grid):
    for (width, height), box in zip(units["unpad_sizes"], units[f"unpad_box_q{grid}"], strict=True):
        expected = (0, grid, 0, grid) if box[0] < 0 else tuple(box)  # -1: nothing was left
        assert kept_box(int(width), int(height), grid) == expected, (width, height)


@pytest.mark.parametrize(("token_grid", "query_grid"), [(24, 12), (8, 4), (24, 24)])
def test_masks_are_the_recorded_ones(units, token_grid, query_grid):
    masks = units[f"sva_mask_a{token_grid}_q{query_grid}"]
    for (width, height), mask in zip(units["unpad_sizes"], masks, strict=True):
        ours = window_mask(int(width), int(height), token_grid, query_grid)
        assert np.array_equal(ours.numpy(), mask), (width, height)


def test_landscape_keeps_rows_and_portrait_columns():
    assert kept_box(640, 360, 12) == Box(3, 9, 0, 12)
    assert kept_box(360, 640, 12) == Box(0, 12, 3, 9)
    assert kept_box(480, 480, 12) == Box(0, 12, 0, 12)


def test_extreme_aspect_ratio_keeps_the_full_grid():
    assert kept_box(1000, 16, 12) == Box(0, 12, 0, 12)
    assert window_mask(1000, 16, 24, 12).all()


def test_token_counts():
    assert frame_token_count(12, 12) == 156
    assert kept_box(640, 360, 12).num_tokens == 78  # six rows of twelve cells and a newline
    assert kept_box(360, 640, 12).num_tokens == 84


@settings(max_examples=200, deadline=None)
@given(width=SIDES, height=SIDES, grid=st.integers(1, 30))
def test_box_is_centred_and_turns_with_the_picture(width, height, grid):
    box = kept_box(width, height, grid)
    assert box.row0 == grid - box.row1 and box.col0 == grid - box.col1
    assert box.rows > 0 and box.cols > 0
    turned = kept_box(height, width, grid)
    assert turned == (box.col0, box.col1, box.row0, box.row1)
    # What stays covers the picture: at most one cell of padding on either side goes uncounted.
    if 0 in (box.row0, box.col0) and (box.row0 or box.col0):
        shown = grid * min(width, height) / max(width, height)
        assert min(box.rows, box.cols) >= int(shown + 1e-9)


@settings(max_examples=60, deadline=None)
@given(width=SIDES, height=SIDES)
def test_no_window_is_without_a_key(width, height):
    assert window_mask(width, height, 24, 12).any(-1).all()


def test_windows_are_row_major_inside_and_out():
    tokens = torch.arange(36).reshape(1, 36, 1)
    windows = to_windows(tokens, 6, 3)
    assert windows.shape == (1, 9, 4, 1)
    assert windows[0, 0, :, 0].tolist() == [0, 1, 6, 7]
    assert windows[0, 1, :, 0].tolist() == [2, 3, 8, 9]
    assert windows[0, 5, :, 0].tolist() == [16, 17, 22, 23]


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="width, height must be positive, got 0 x 3"):
        kept_box(0, 3, 12)
    with pytest.raises(ValueError, match="grid must be positive, got 0"):
        kept_box(3, 3, 0)
    with pytest.raises(ValueError, match="query_grid must divide the token grid 24, got 7"):
        window_side(24, 7)
    with pytest.raises(ValueError, match="tokens must have 36 rows"):
        to_windows(torch.zeros(35, 2), 6, 3)

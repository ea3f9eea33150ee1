# SPDX-License-Identifier: Apache-2.0
"""Colour and edge histograms: against the definition, pixel by pixel, and on cuts and pans."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from clips import pans

from tdc.encoder.color_features import SIZE, THRESHOLD, color_features, min_scene_frames
from tdc.encoder.segment import segment
from tdc.errors import InputError

COLORS = 256  # of the 384 numbers


def solid(*rgb: int, size: tuple[int, int] = (64, 64)) -> np.ndarray:
    return np.full((*size, 3), rgb, dtype=np.uint8)


def noise(seed: int, count: int = 1) -> np.ndarray:
    """uint8 ``[count, 64, 64, 3]``: patches of 4 x 4 random colours."""
    dice = np.random.default_rng(seed)
    patches = dice.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    return patches.repeat(4, axis=1).repeat(4, axis=2)


def test_both_halves_have_unit_length():
    features = color_features(noise(0, 5))
    assert features.shape == (5, SIZE) == (5, 384) and features.dtype == torch.float32
    for half in (features[:, :COLORS], features[:, COLORS:]):
        torch.testing.assert_close(half.norm(dim=1), torch.ones(5))


@pytest.mark.parametrize(
    ("rgb", "bin_"),
    [  # hue * 16 + saturation * 4 + value; red is hue 0 of 16, green 5, blue 10
        ((255, 0, 0), (0, 3, 3)),
        ((0, 255, 0), (5, 3, 3)),
        ((0, 0, 255), (10, 3, 3)),
        ((255, 180, 180), (0, 1, 3)),
        ((60, 0, 0), (0, 3, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((255, 255, 255), (0, 0, 3)),
    ],
)
def test_one_color_is_one_bin_and_no_edge(rgb, bin_):
    hue, saturation, value = bin_
    expected = torch.zeros(SIZE)
    expected[hue * 16 + saturation * 4 + value] = 1
    assert torch.equal(color_features(solid(*rgb)[None])[0], expected)


def test_shares_of_two_colors():
    frame = solid(255, 0, 0)
    frame[:, 48:] = (0, 0, 255)
    colors = color_features(frame[None])[0, :COLORS]
    assert colors[15] == pytest.approx(math.sqrt(0.75))
    assert colors[10 * 16 + 15] == pytest.approx(math.sqrt(0.25))
    assert colors.square().sum() == pytest.approx(1)


def test_edges_are_strength_by_cell_and_direction():
    frame = np.random.default_rng(3).integers(0, 256, (64, 64), dtype=np.uint8)
    gray = frame.astype(float)

    def slope(line, i):  # central inside, one-sided at the border
        low, high = max(i - 1, 0), min(i + 1, 63)
        return (line[high] - line[low]) / (high - low)

    expected = np.zeros((4, 4, 8))
    for y in range(64):
        for x in range(64):
            right, down = slope(gray[y], x), slope(gray[:, x], y)
            direction = round(math.atan2(down, right) / (2 * math.pi) * 8) % 8
            expected[y // 16, x // 16, direction] += math.hypot(right, down)
    found = color_features(frame[None, :, :, None].repeat(3, axis=3))[0, COLORS:]
    wanted = torch.from_numpy(np.sqrt(expected / expected.sum()).ravel())
    torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=1e-4)


def test_a_frame_of_any_size_is_scaled_without_padding():
    frames = noise(1)
    large = frames.repeat(5, axis=1).repeat(3, axis=2)  # 320 x 192
    torch.testing.assert_close(color_features(large), color_features(frames))
    chess = np.indices((128, 128)).sum(0) % 2 * np.uint8(255)  # gray from afar
    chess = chess.astype(np.uint8)[None, :, :, None].repeat(3, axis=3)
    assert torch.equal(color_features(chess), color_features(solid(128, 128, 128)[None]))
    assert color_features(noise(1)[:, :1, :40]).isfinite().all()


@pytest.mark.parametrize("frames", [np.zeros((2, 8, 8, 3), np.float32), solid(0, 0, 0)])
def test_other_arrays_are_refused(frames):
    with pytest.raises(InputError, match=r"frames must be uint8 \[T, H, W, 3\]"):
        color_features(frames)


def test_no_frames_and_black_frames():
    assert color_features(np.zeros((0, 8, 8, 3), np.uint8)).shape == (0, SIZE)
    frames = np.stack([solid(0, 0, 0), solid(0, 0, 0), noise(2)[0]])
    same, other = segment(color_features(frames), 1).similarity.tolist()
    assert same == pytest.approx(1) and other < 0.5  # no edges: the colours alone decide


def test_threshold_cuts_between_places_and_not_in_a_pan():
    features = color_features(pans(10, 12, 8))
    assert segment(features, 30, None, THRESHOLD).scene_starts() == [0, 10, 22]
    assert segment(features, 3).scene_starts() == [0, 10, 22]


# --- cuts that are close to each other (segment, min_scene) --------------------------------------


def directions(*degrees: float) -> torch.Tensor:
    """Unit vectors ``[T, 2]``: similarities are the cosines of the steps."""
    return torch.tensor([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees])


def test_of_close_cuts_the_deepest_stays():
    """A dissolve over frames 3 to 5: steps of 30, 50 and 40 degrees."""
    features = directions(0, 0, 0, 30, 80, 120, 120, 120, 180)
    assert segment(features, 99, None, 0.9).scene_starts() == [0, 3, 4, 5, 8]
    assert segment(features, 99, None, 0.9, 2).scene_starts() == [0, 4, 8]
    assert segment(features, 2, None, 0.9, 2).scene_starts() == [0, 8]
    assert segment(features, 99, None, 0.9, 5).scene_starts() == [0, 8]


def test_only_the_deepest_of_close_cuts_count_towards_the_number():
    """Without a threshold, and with more scenes asked for than there are."""
    features = directions(0, 0, 0, 30, 80, 120, 120, 120, 180)
    found = segment(features, 3, None, None, 3)
    assert found.scene_starts() == [0, 4, 8]
    torch.testing.assert_close(found.similarity, segment(features, 3).similarity)
    many = segment(features, 99, None, None, 3).scene_starts()
    assert {4, 8} < set(many) and all(b - a >= 3 for a, b in pairwise(many[1:]))


def test_of_equal_cuts_the_earlier_stays():
    assert segment(directions(0, 90, 180, 180, 180), 9, None, 0.5, 2).scene_starts() == [0, 1]


def test_videos_of_a_batch_do_not_see_each_other():
    one, two = directions(0, 40, 40, 40), directions(0, 0, 90)
    lengths = [0, 0, 4, 4, 5, 8]  # empty ones, and one of a single frame
    found = segment(torch.cat([one, directions(7), two]), 9, lengths, 0.9, 3)
    starts = [found.scene_starts(video) for video in range(5)]
    assert starts == [[], [0, 1], [], [0], [0, 2]]


def test_least_length_of_a_scene_in_frames():
    assert [min_scene_frames(fps) for fps in (0.1, 1, 2, 4, 5, 10)] == [1, 1, 2, 3, 3, 6]

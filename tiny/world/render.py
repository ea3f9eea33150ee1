# SPDX-License-Identifier: Apache-2.0
"""Rendering of clips at any size.

Masks of shapes are painted once per size and sub-pixel position, eight times enlarged, and cached;
a frame is a copy of its scene's background with a few of them blended in.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from PIL import Image, ImageDraw

from tdc.errors import InputError

from .clips import UNITS, Clip, Scene, Thing
from .words import BACKGROUNDS, COLORS

_FINE = 8  # supersampling factor, for smooth edges
_STEPS = 4  # sub-pixel positions per pixel
_RIM = 1.3  # width of the black rim, 64ths of the picture
_PERIODS = {"stripes": 16.0, "dots": 16.0, "checks": 16.0}
MIN_SIZE = 16


def render_frames(clip: Clip, size: int = 64, fps: int = 1) -> np.ndarray:
    """Frames uint8 [T, size, size, 3] of a clip, T = fps x seconds; frame k shows time k / fps.

    Raises:
        InputError: `size` below 16 or `fps` below 1.
    """
    if size < MIN_SIZE:
        raise InputError(f"size: got {size}, expected {MIN_SIZE} pixels or more")
    if fps < 1:
        raise InputError(f"fps: got {fps}, expected 1 or more")
    frames = np.empty((clip.num_frames * fps, size, size, 3), dtype=np.uint8)
    for scene, start in zip(clip.scenes, clip.starts, strict=True):
        stop = start + scene.num_frames
        frames[start * fps : stop * fps] = background(scene, size)
        for k in range(start * fps, stop * fps):
            _paint(frames[k], scene, k / fps - start)
    return frames


def render_frame(scene: Scene, time: float, size: int = 64) -> np.ndarray:
    """Picture uint8 [size, size, 3] of a scene at a time (frames, may be fractional)."""
    frame = background(scene, size).copy()
    _paint(frame, scene, time)
    return frame


def _paint(frame: np.ndarray, scene: Scene, time: float) -> None:
    for thing in scene.things:
        if not thing.first <= time < thing.last:
            continue
        placed = stamp(thing, time, len(frame))
        if placed is None:
            continue
        rows, columns, keep, fill = placed
        part = frame[rows, columns]
        part[:] = part * keep + fill * _rgb(thing.color_at(time))


@functools.cache
def _rgb(color: str) -> np.ndarray:
    return np.array(COLORS[color], dtype=np.float32)


def stamp(
    thing: Thing, time: float, size: int
) -> tuple[slice, slice, np.ndarray, np.ndarray] | None:
    """Position and masks of a thing in a picture of `size` pixels; None outside of it.

    Returns rows, columns and two masks fp32 [h, w, 1]: the remaining background, and the part in
    the thing's color. The rest is its black rim.
    """
    scale = size / UNITS
    x, y = (round(v * scale * _STEPS) for v in thing.position(time))
    keep, fill = _masks(thing.shape, thing.size * scale, _RIM * scale, x % _STEPS, y % _STEPS)
    half = len(keep) // 2
    left, top = x // _STEPS - half, y // _STEPS - half
    box = [max(0, top), min(size, top + 2 * half), max(0, left), min(size, left + 2 * half)]
    if box[0] >= box[1] or box[2] >= box[3]:
        return None
    inner = slice(box[0] - top, box[1] - top), slice(box[2] - left, box[3] - left)
    return slice(box[0], box[1]), slice(box[2], box[3]), keep[inner], fill[inner]


@functools.lru_cache(maxsize=4096)
def _masks(
    shape: str, radius: float, rim: float, shift_x: int, shift_y: int
) -> tuple[np.ndarray, np.ndarray]:
    """(1 - whole shape, shape without rim), fp32 [2h, 2h, 1], centred at h + shift / 4 pixels."""
    half = math.ceil(radius) + 2
    centre = ((half + shift_x / _STEPS) * _FINE, (half + shift_y / _STEPS) * _FINE)
    masks = []
    for reach in (radius, radius - rim):
        canvas = Image.new("L", (2 * half * _FINE,) * 2)
        corners = [
            (centre[0] + u * reach * _FINE, centre[1] + v * reach * _FINE)
            for u, v in _outline(shape, rim / radius if reach < radius else 0.0)
        ]
        ImageDraw.Draw(canvas).polygon(corners, fill=255)
        masks.append(np.asarray(canvas.reduce(_FINE), dtype=np.float32)[..., None] / 255)
    return 1 - masks[0], masks[1]


def _outline(shape: str, rim: float) -> list[tuple[float, float]]:
    """Corners in -1..1; `rim` thins the arms of a cross, which scaling alone would not."""
    if shape == "square":
        return [(-0.96, -0.96), (0.96, -0.96), (0.96, 0.96), (-0.96, 0.96)]
    if shape == "triangle":
        return [(0.0, -1.0), (1.0, 0.85), (-1.0, 0.85)]
    if shape == "cross":
        a = 0.36 * (1 - 1.2 * rim)
        arm = [(a, -1.0), (a, -a), (1.0, -a)]
        turns = [[(x, y), (-y, x), (-x, -y), (y, -x)] for x, y in arm]
        return [turns[k][turn] for turn in range(4) for k in range(3)]
    count, inner = (10, 0.45) if shape == "star" else (48, 1.0)
    angles = [2 * math.pi * k / count - math.pi / 2 for k in range(count)]
    lengths = [1.0 if k % 2 == 0 else inner for k in range(count)]
    return [(r * math.cos(a), r * math.sin(a)) for a, r in zip(angles, lengths, strict=True)]


def background(scene: Scene, size: int) -> np.ndarray:
    """uint8 [size, size, 3] of a scene without objects; read-only."""
    period = _PERIODS.get(scene.texture, 1.0)
    # Whole 64ths: a phase between pixels would blur each clip's texture differently.
    x, y = (int(v % period) for v in scene.phase)
    return _ground(scene.background, scene.texture, x, y, size)


@functools.lru_cache(maxsize=2048)
def _ground(color: str, texture: str, shift_x: int, shift_y: int, size: int) -> np.ndarray:
    first, second = (np.array(tone, dtype=np.float32) for tone in BACKGROUNDS[color])
    fine = 4
    at = (np.arange(size * fine) + 0.5) * UNITS / (size * fine)
    x, y = (at + shift_x)[None, :], (at + shift_y)[:, None]
    period = _PERIODS.get(texture, 1.0)
    if texture == "stripes":
        dark = (x + y) % period < period / 2
    elif texture == "dots":
        dark = (x % period - period / 2) ** 2 + (y % period - period / 2) ** 2 < 4.6**2
    elif texture == "checks":
        dark = (x % period < period / 2) ^ (y % period < period / 2)
    else:
        dark = np.zeros((size * fine, size * fine), dtype=bool)
    share = dark.reshape(size, fine, size, fine).mean(axis=(1, 3), dtype=np.float32)[..., None]
    ground = np.rint(first + share * (second - first)).astype(np.uint8)
    ground.flags.writeable = False
    return ground

# SPDX-License-Identifier: Apache-2.0
"""The scenes of the demonstration clip: how each is painted and what it sounds like.

A painter gets the canvas size and a random generator, and gives a backdrop [H, W, 3] and a function
that draws what moves at t seconds of the scene. A sound maps times [n] (s) to samples [n].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import ImageDraw

Paint = Callable[[ImageDraw.ImageDraw, float], None]
Painter = Callable[[int, int, np.random.Generator], tuple[np.ndarray, Paint]]
Sound = Callable[[np.ndarray, np.random.Generator], np.ndarray]
Colour = tuple[int, int, int]

_BOUNCE = 0.8  # s between two landings of the ball; no divisor of a second


@dataclass(frozen=True)
class Scene:
    text: str
    painter: Painter
    sound: Sound


def _gradient(width: int, height: int, *stops: Colour) -> np.ndarray:
    """Vertical colour gradient through `stops`, float [H, W, 3]."""
    at = np.linspace(0, len(stops) - 1, height)
    column = [np.interp(at, range(len(stops)), [s[c] for s in stops]) for c in range(3)]
    return np.repeat(np.stack(column, axis=-1)[:, None, :], width, axis=1)


def _disc(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, fill: Colour) -> None:
    draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)


def _sea(w: int, h: int, rng: np.random.Generator) -> tuple[np.ndarray, Paint]:
    horizon = int(0.62 * h)
    sky = _gradient(w, horizon, (70, 40, 110), (220, 90, 90), (255, 190, 100))
    water = _gradient(w, h - horizon, (150, 80, 100), (30, 30, 70))
    waves = rng.uniform(0, 1, (40, 3))

    def paint(draw: ImageDraw.ImageDraw, t: float) -> None:
        _disc(draw, 0.68 * w, (0.34 + 0.03 * t) * h, 0.11 * h, (255, 235, 170))
        draw.rectangle((0, horizon, w, h), fill=(110, 58, 92))
        for x, y, length in waves:
            left = (x * w + 18 * t * (0.5 + y)) % (1.2 * w) - 0.1 * w
            top = horizon + 4 + y * (h - horizon - 8)
            shade = (235 - int(150 * y), 140 - int(80 * y), 120 - int(30 * y))
            draw.line((left, top, left + (0.03 + 0.1 * length) * w, top), fill=shade, width=3)
        x, y = (0.1 + 0.06 * t) * w, horizon + 0.10 * h + 3 * math.sin(3 * t)
        s = 0.09 * h
        hull = [(x - s, y), (x + s, y), (x + 0.6 * s, y + 0.4 * s), (x - 0.6 * s, y + 0.4 * s)]
        draw.polygon(hull, fill=(60, 25, 30))
        draw.polygon([(x, y - 0.1 * s), (x, y - 2 * s), (x + 0.9 * s, y - 0.1 * s)],
                     fill=(250, 240, 225))  # fmt: skip

    return np.concatenate([sky, water]), paint


def _street(w: int, h: int, rng: np.random.Generator) -> tuple[np.ndarray, Paint]:
    ground = int(0.78 * h)
    backdrop = _gradient(w, h, (12, 14, 44), (36, 38, 88), (62, 56, 98))
    for x, y in rng.uniform(0, 1, (50, 2)):
        backdrop[int(y * 0.4 * h), int(x * (w - 1))] = 220
    left = -int(0.02 * w)
    while left < w:
        wide, top = int(rng.uniform(0.12, 0.2) * w), int(rng.uniform(0.22, 0.5) * h)
        x0, x1 = max(left, 0), min(left + wide, w)
        backdrop[top:ground, x0:x1] = rng.uniform(20, 48, 3)
        step = max(6, h // 16)
        for y in range(top + step // 2, ground - step, step):
            for x in range(x0 + step // 2, x1 - step // 2, step):
                if rng.random() < 0.55:
                    light = (250, 215, 120) if rng.random() < 0.8 else (140, 190, 240)
                    backdrop[y : y + step // 2, x : x + step // 2] = light
        left += wide + int(0.012 * w)
    backdrop[ground:] = (38, 38, 44)

    def paint(draw: ImageDraw.ImageDraw, t: float) -> None:
        for i in range(8):
            x = i * w / 8 + w / 32
            draw.rectangle((x, 0.9 * h, x + w / 16, 0.91 * h), fill=(200, 200, 180))
        x, y, s = ((0.1 + 0.13 * t) % 1.4 - 0.1) * w, 0.84 * h, 0.07 * h
        draw.polygon([(x + 2.4 * s, y), (x + 6 * s, y - s), (x + 6 * s, y + s)],
                     fill=(96, 90, 66))  # fmt: skip
        draw.rounded_rectangle((x - 2.6 * s, y - s, x + 2.6 * s, y + s), s / 2, fill=(200, 40, 50))
        draw.rounded_rectangle((x - 1.5 * s, y - 2 * s, x + 1.2 * s, y), s / 2, fill=(150, 25, 40))
        for wheel in (-1.5, 1.5):
            _disc(draw, x + wheel * s, y + s, 0.6 * s, (12, 12, 12))

    return backdrop, paint


def _meadow(w: int, h: int, rng: np.random.Generator) -> tuple[np.ndarray, Paint]:
    horizon = int(0.55 * h)
    backdrop = np.concatenate(
        [
            _gradient(w, horizon, (110, 180, 245), (205, 232, 250)),
            _gradient(w, h - horizon, (125, 190, 80), (45, 120, 45)),
        ]
    )
    ys, xs = np.mgrid[0:h, 0:w]
    hill = ys > horizon - 0.14 * h * np.sin(xs / w * 5 + 1) ** 2
    backdrop[hill & (ys < horizon)] = (95, 165, 75)
    for x, y in rng.uniform(0, 1, (60, 2)):
        cx, cy = int(x * (w - 6)), horizon + int(y * (h - horizon - 6))
        backdrop[cy : cy + 4, cx : cx + 4] = rng.choice([[250, 230, 90], [245, 245, 245]])

    def paint(draw: ImageDraw.ImageDraw, t: float) -> None:
        for i, speed in enumerate((9, 6, 13)):
            x = (0.15 + 0.33 * i) * w + speed * t * w / 320
            for dx in (-0.05, 0.0, 0.05):
                _disc(draw, x + dx * w, (0.13 + 0.06 * i) * h, 0.05 * h, (250, 252, 255))
        phase = t / _BOUNCE % 1.0
        x = (0.15 + 0.16 * t) % 1.1 * w
        y = (0.82 - 1.7 * phase * (1 - phase)) * h
        wide = 0.1 * h * (0.4 + (y / (0.82 * h)))
        draw.ellipse((x - wide, 0.88 * h, x + wide, 0.92 * h), fill=(35, 95, 38))
        _disc(draw, x, y, 0.09 * h, (225, 50, 45))
        _disc(draw, x - 0.03 * h, y - 0.03 * h, 0.025 * h, (255, 190, 180))

    return backdrop, paint


def _reef(w: int, h: int, rng: np.random.Generator) -> tuple[np.ndarray, Paint]:
    backdrop = _gradient(w, h, (60, 190, 200), (15, 100, 150), (5, 40, 80))
    bubbles = rng.uniform(0, 1, (30, 3))
    fish = rng.uniform(0, 1, (5, 3))
    colours: list[Colour] = [
        (250, 150, 40), (250, 220, 70), (235, 90, 120), (120, 230, 190), (245, 245, 250)
    ]  # fmt: skip

    def paint(draw: ImageDraw.ImageDraw, t: float) -> None:
        for i in range(9):
            x, tall = (i + 0.5) * w / 9, (0.16 + 0.1 * ((i * 7) % 4) / 3) * h
            sway = 0.03 * w * math.sin(1.5 * t + i)
            draw.polygon([(x - 0.02 * w, h), (x + 0.02 * w, h), (x + sway, h - tall)],
                         fill=(20, 110 + 12 * (i % 4), 70))  # fmt: skip
        for x, y, size in bubbles:
            top = (y - 0.18 * t * (0.6 + size)) % 1.0
            r = (0.008 + 0.02 * size) * h
            left = x * w + 0.01 * w * math.sin(4 * t + 9 * size)
            draw.ellipse((left - r, top * h - r, left + r, top * h + r),
                         outline=(200, 240, 245), width=2)  # fmt: skip
        for (x, y, size), colour in zip(fish, colours, strict=True):
            cx = ((x + 0.05 * t * (0.6 + size)) % 1.2 - 0.1) * w
            cy = (0.15 + 0.6 * y) * h + 0.02 * h * math.sin(3 * t + 6 * x)
            s = (0.04 + 0.03 * size) * h
            draw.polygon([(cx - 1.2 * s, cy), (cx - 2.4 * s, cy - s), (cx - 2.4 * s, cy + s)],
                         fill=colour)  # fmt: skip
            draw.ellipse((cx - 1.6 * s, cy - s, cx + 1.6 * s, cy + s), fill=colour)
            _disc(draw, cx + 0.9 * s, cy - 0.2 * s, 0.18 * s, (10, 10, 20))

    return backdrop, paint


def _mountain(w: int, h: int, rng: np.random.Generator) -> tuple[np.ndarray, Paint]:
    backdrop = _gradient(w, h, (170, 185, 205), (215, 222, 232), (240, 243, 247))
    ys, xs = np.mgrid[0:h, 0:w]
    for middle, peak, wide in ((0.3, 0.2, 0.5), (0.75, 0.32, 0.45)):
        ridge = h * (peak + np.abs(xs / w - middle) / wide) + 0.015 * h * np.sin(xs / w * 60)
        backdrop[ys > ridge] = (92, 102, 125)
        cap = h * (peak + 0.16) + 0.04 * h * np.sin(xs / w * 45)
        backdrop[(ys > ridge) & (ys < cap)] = (248, 250, 253)
    backdrop[ys > h * (0.84 + 0.04 * np.sin(xs / w * 4))] = (236, 241, 247)
    flakes = rng.uniform(0, 1, (90, 3))

    def paint(draw: ImageDraw.ImageDraw, t: float) -> None:
        for i in range(6):
            x, foot, s = (0.07 + 0.17 * i) * w, (0.93 + 0.03 * (i % 2)) * h, 0.13 * h
            for k in range(3):
                top = foot - s * (0.5 + 0.5 * k)
                half = s * (0.42 - 0.1 * k)
                low = top + 0.45 * s
                draw.polygon([(x - half, low), (x + half, low), (x, top - 0.2 * s)],
                             fill=(28, 72 + 10 * k, 58))  # fmt: skip
        for x, y, size in flakes:
            fall = (y + t * (0.12 + 0.15 * size)) % 1.0
            left = (x + 0.03 * math.sin(2 * t + 7 * size)) % 1.0
            _disc(draw, left * w, fall * h, (0.004 + 0.008 * size) * h, (255, 255, 255))

    return backdrop, paint


def _wheel(w: int, h: int, rng: np.random.Generator) -> tuple[np.ndarray, Paint]:
    ys, xs = np.mgrid[0:h, 0:w]
    cell = max(8, h // 8)
    board = ((xs // cell + ys // cell) % 2)[..., None]
    backdrop = np.where(board, (238.0, 222.0, 196.0), (188.0, 148.0, 110.0))
    colours: list[Colour] = [
        (225, 60, 60), (245, 160, 50), (245, 225, 80), (80, 180, 90), (60, 130, 220), (140, 80, 180)
    ]  # fmt: skip
    spin = rng.uniform(60, 90)

    def paint(draw: ImageDraw.ImageDraw, t: float) -> None:
        x, y, r = (0.5 + 0.12 * math.sin(t)) * w, 0.5 * h, 0.34 * h
        _disc(draw, x + 0.03 * h, y + 0.04 * h, r, (120, 90, 66))
        for i, colour in enumerate(colours):
            first = 60 * i + spin * t
            draw.pieslice((x - r, y - r, x + r, y + r), first, first + 60, fill=colour)
        _disc(draw, x, y, 0.18 * r, (250, 250, 250))

    return backdrop, paint


def _sine(hertz: float | np.ndarray, t: np.ndarray) -> np.ndarray:
    return np.sin(2 * np.pi * hertz * t)


def _chord(t: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return (0.2 * _sine(220, t) + 0.15 * _sine(277.2, t)) * (0.8 + 0.2 * _sine(0.7, t))


def _engine(t: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return 0.25 * (2 * ((70 * t) % 1) - 1) * (0.7 + 0.3 * _sine(9, t)) + rng.normal(0, 0.02, len(t))


def _bounces(t: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return 0.5 * _sine(660, t) * np.exp(-9 * (t % _BOUNCE))


def _bursts(t: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    noise = rng.normal(0, 1, len(t) + 15)
    soft = np.convolve(noise, np.ones(16) / 16, mode="valid")  # low-passed: bubbling, not hissing
    return 0.6 * soft * (t % 0.6 < 0.25)


def _chirp(t: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    phase = t % 2.0
    return 0.3 * np.sin(2 * np.pi * (300 * phase + 325 * phase**2))  # 300 to 1600 Hz in 2 s


def _arpeggio(t: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    notes = np.array([392.0, 493.9, 587.3, 784.0])
    beat = t % 0.25
    return 0.35 * _sine(notes[(t // 0.25).astype(int) % 4], beat) * np.exp(-5 * beat)


# Light and dark take turns, so that every cut is plain to see.
SCENES = (
    Scene("a boat under a setting sun; a low chord", _sea, _chord),
    Scene("a ball bouncing on a meadow; a blip each time it lands", _meadow, _bounces),
    Scene("a red car in a street at night; an engine", _street, _engine),
    Scene("snow falling on mountains; rising whistles", _mountain, _chirp),
    Scene("fish and bubbles under water; bursts of noise", _reef, _bursts),
    Scene("a colour wheel turning on a chessboard; quick notes", _wheel, _arpeggio),
)

# SPDX-License-Identifier: Apache-2.0
"""The timeline picture: scenes as thumbnails, frame similarity and boundaries over time, sound."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MultipleLocator
from PIL import Image

from ..files import whole_file
from ..media.clock import clock

_DPI = 110
_WIDTH, _MARGIN = 14.0, 0.65  # inches
_MAX_THUMBNAILS, _PER_ROW = 30, 10
_GAP, _CAPTION = 0.10, 0.26  # inches between thumbnails, above each for its caption
_TINTS = ("#e4edf8", "#fcefdc")
_EDGES = ("#7fa3cf", "#e0a95c")
_INK, _QUIET, _CURVE, _CUT, _SOUND = "#22252b", "#6c7280", "#2158a8", "#c8364b", "#7d8797"
_STEPS = (0.1, 0.2, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200)


def draw_timeline(
    path: str | os.PathLike[str],
    *,
    frames: np.ndarray | Sequence[np.ndarray],
    timestamps: np.ndarray | Sequence[float],
    similarity: np.ndarray | Sequence[float],
    scene_starts: Sequence[int],
    anchors: Sequence[int] = (),
    duration: float | None = None,
    title: str = "",
    notes: Sequence[tuple[str, str]] = (),
    waveform: np.ndarray | None = None,
    sample_rate: int = 16000,
) -> Path:
    """Draw the timeline and write it as PNG; the file appears whole or not at all.

    Args:
        path: where to write.
        frames: uint8 pictures [H, W, 3] RGB, one per time stamp, or one per scene.
        timestamps: [T] seconds, ascending.
        similarity: [T - 1], of frames t and t + 1; drawn at frame t + 1, where a new scene begins.
        scene_starts: frame indices, ascending, the first 0. Up to 30 scenes get a thumbnail each,
            of more an even choice.
        anchors: frame indices of the static frames.
        duration: right end in seconds of the same clock; default one step after the last frame.
        title: above all; a long one is shortened.
        notes: (label, text) pairs below all, such as a question and its answer; long texts are
            wrapped and shortened.
        waveform: float [n] mono in [-1, 1] at `sample_rate` Hz from the first time stamp on.

    Raises:
        ValueError: lengths that do not fit each other.
        InputError: a folder that does not exist or cannot be written.
    """
    times = np.asarray(timestamps, dtype=np.float64)
    curve = np.asarray(similarity, dtype=np.float64)
    starts = [int(s) for s in scene_starts]
    _check(frames, times, curve, starts)
    step = float(np.median(np.diff(times))) if len(times) > 1 else 1.0
    left, right = float(times[0]), float(times[-1]) + step
    if duration is not None:
        right = max(float(times[-1]), duration)
    right = max(right, left + 1e-3)  # a single frame whose duration is 0
    edges = [float(times[s]) for s in starts[1:]]
    scenes = _Scenes([left, *edges], [*edges, right])
    pictures = list(frames) if len(frames) != len(times) else [frames[s] for s in starts]
    span = right - left
    length = clock(span) if span >= 1 else f"{span:.2f} s"
    summary = f"{_count(len(starts), 'scene')}, {_count(len(times), 'frame')}, {length}"
    page = _Page(title or "Timeline", summary, _wrapped(notes))
    page.thumbnails(scenes, pictures)
    axes = page.plot(2.1)
    _draw_similarity(axes, scenes, times, curve, [int(a) for a in anchors])
    if waveform is not None and len(waveform):
        _time_axis(axes, left, right, labels=False)
        axes = page.plot(0.75)
        _draw_sound(axes, scenes, np.asarray(waveform, dtype=np.float32), sample_rate)
    _time_axis(axes, left, right, labels=True)
    figure = page.finish()
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=_DPI)
    return Path(path)


@dataclass(frozen=True)
class _Scenes:
    starts: list[float]  # seconds
    ends: list[float]


def _check(frames: Any, times: np.ndarray, curve: np.ndarray, starts: list[int]) -> None:
    if times.ndim != 1 or not len(times):
        raise ValueError(f"timestamps: got shape {times.shape}, expected [T] with T >= 1")
    if curve.shape != (len(times) - 1,):
        raise ValueError(f"similarity: got shape {curve.shape}, expected ({len(times) - 1},)")
    ascending = all(a < b for a, b in pairwise(starts))
    if not starts or starts[0] != 0 or not ascending or starts[-1] >= len(times):
        raise ValueError(
            f"scene_starts: got {starts}, expected ascending, from 0, below {len(times)}"
        )
    if len(frames) not in (len(times), len(starts)):
        raise ValueError(
            f"frames: got {len(frames)} pictures, expected one per frame ({len(times)}) or per "
            f"scene ({len(starts)})"
        )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _wrapped(notes: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """(label, line) pairs; a text is wrapped to the page and ends with … after five lines."""
    return [
        (label if number == 0 else "", line)
        for label, text in notes
        for number, line in enumerate(
            textwrap.wrap(" ".join(text.split()), 150, max_lines=5, placeholder=" …") or [""]
        )
    ]


class _Page:
    """Stacks parts from the top down, in inches; the height follows from what is on it.

    Axes are placed when the height is known: `finish` turns inches into figure fractions.
    """

    def __init__(self, title: str, summary: str, notes: list[tuple[str, str]]) -> None:
        self.figure = Figure(figsize=(_WIDTH, 1.0), dpi=_DPI, facecolor="white")
        FigureCanvasAgg(self.figure)
        self.notes = notes
        self.y = 0.30  # inches used from the top
        self._axes: list[tuple[Axes, float, float, float, float]] = []
        self._texts: list[tuple[Any, float]] = []
        short = textwrap.shorten(title, 95, placeholder=" …")
        self._text(_MARGIN, short, size=15, weight="bold", color=_INK)
        self._text(_WIDTH - _MARGIN, summary, size=10.5, color=_QUIET, ha="right")
        self.y += 0.14

    def _text(self, x: float, text: str, **style: Any) -> None:
        """One line with its baseline at the current height; `$` is no formula."""
        drawn = self.figure.text(x / _WIDTH, 0, text, parse_math=False, va="baseline", **style)
        self._texts.append((drawn, self.y))

    def thumbnails(self, scenes: _Scenes, pictures: Sequence[np.ndarray]) -> None:
        total = len(pictures)
        shown = np.unique(
            np.linspace(0, total - 1, min(total, _MAX_THUMBNAILS)).round().astype(int)
        )
        rows = math.ceil(len(shown) / _PER_ROW)
        columns = math.ceil(len(shown) / rows)
        height, width = pictures[0].shape[:2]
        cell = min(2.6, (_WIDTH - 2 * _MARGIN + _GAP) / columns - _GAP)
        # Very flat and very tall pictures keep their shape inside a cell of sane size.
        cell = min(cell, max(1.9 * width / height, 0.9))
        tall = min(max(cell * height / width, 0.30), 1.9)
        for i, scene in enumerate(shown.tolist()):
            row, column = divmod(i, columns)
            x, y = _MARGIN + column * (cell + _GAP), self.y + row * (tall + _CAPTION + _GAP)
            axes = self._add(x, y + _CAPTION, cell, tall)
            axes.imshow(
                _shrink(pictures[scene], cell, tall), aspect="equal", interpolation="nearest"
            )
            axes.set(xticks=[], yticks=[], facecolor="#f3f4f6")
            _letterbox(axes, pictures[scene].shape, cell / tall)
            for side in axes.spines.values():
                side.set(color=_EDGES[scene % 2], linewidth=1.8)
            caption = f"$\\bf{{{scene + 1}}}$  {clock(scenes.starts[scene])}"
            axes.set_title(caption, loc="left", fontsize=9, pad=3, color=_INK)
        self.y += rows * (tall + _CAPTION + _GAP)
        if len(shown) < total:
            self.y += 0.12
            self._text(_MARGIN, f"{len(shown)} of {total} scenes shown", size=9, color=_QUIET)
        self.y += 0.05

    def plot(self, height: float) -> Axes:
        axes = self._add(_MARGIN, self.y + 0.32, _WIDTH - 2 * _MARGIN, height)
        self.y += 0.32 + height
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color("#b6bbc4")
        axes.tick_params(labelsize=9, colors=_QUIET)
        return axes

    def _add(self, x: float, y: float, width: float, height: float) -> Axes:
        axes = self.figure.add_axes((0.0, 0.0, 0.5, 0.5), label=str(len(self._axes)))
        self._axes.append((axes, x, y, width, height))
        return axes

    def finish(self) -> Figure:
        self.y += 0.55  # the time axis' labels
        for label, line in self.notes:
            self.y += 0.08 if label else 0.0
            self._text(_MARGIN, label, size=9.5, weight="bold", color=_INK)
            self._text(_MARGIN + 0.85, line, size=9.5, color=_INK)
            self.y += 0.20
        tall = self.y + 0.08
        self.figure.set_size_inches(_WIDTH, tall)
        for axes, x, y, width, height in self._axes:
            axes.set_position((x / _WIDTH, 1 - (y + height) / tall, width / _WIDTH, height / tall))
        for text, y in self._texts:
            text.set_y(1 - y / tall)
        return self.figure


def _shrink(picture: np.ndarray, width: float, height: float) -> np.ndarray:
    """Scale a picture [H, W, 3] down to the pixels its cell (inches) has; never up."""
    scale = min(1.0, width * _DPI / picture.shape[1], height * _DPI / picture.shape[0])
    size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))


def _letterbox(axes: Axes, shape: tuple[int, ...], cell: float) -> None:
    """Widen the view so that the picture stands centred in a cell of this aspect ratio."""
    left, right = axes.get_xlim()
    bottom, top = axes.get_ylim()
    width, height = right - left, bottom - top
    extra_x = max(0.0, height * cell - width) / 2
    extra_y = max(0.0, width / cell - height) / 2
    axes.set_xlim(left - extra_x, right + extra_x)
    axes.set_ylim(bottom + extra_y, top - extra_y)


def _bands(axes: Axes, scenes: _Scenes) -> None:
    for i, (start, end) in enumerate(zip(scenes.starts, scenes.ends, strict=True)):
        axes.axvspan(start, end, color=_TINTS[i % 2], linewidth=0, zorder=0)
        if i:
            axes.axvline(start, color=_CUT, linewidth=1.1, zorder=1)


def _time_axis(axes: Axes, left: float, right: float, *, labels: bool) -> None:
    axes.set_xlim(left, right)
    step = next((s for s in _STEPS if (right - left) / s <= 12), (right - left) / 10)
    axes.xaxis.set_major_locator(MultipleLocator(step))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: clock(x)))
    axes.tick_params(labelbottom=labels)
    if labels:
        axes.set_xlabel("time", fontsize=9, color=_QUIET, labelpad=2)


def _draw_similarity(
    axes: Axes, scenes: _Scenes, times: np.ndarray, curve: np.ndarray, anchors: list[int]
) -> None:
    _bands(axes, scenes)
    finite = curve[np.isfinite(curve)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    span = max(high - low, 0.02)
    axes.set_ylim(low - 0.22 * span, high + 0.12 * span)
    style: dict[str, Any] = {"color": _CURVE, "linewidth": 1.4, "zorder": 3}
    if len(curve) < 80:
        style |= {"marker": "o", "markersize": 3}
    if len(curve):
        style["label"] = "similarity"
    axes.plot(times[1:], np.where(np.isfinite(curve), curve, np.nan), **style)
    if len(scenes.starts) > 1:
        axes.plot([], [], color=_CUT, linewidth=1.1, label="new scene")
    if anchors:
        axes.plot(times[anchors], np.full(len(anchors), 0.05), "^", color=_INK, markersize=5,
                  transform=axes.get_xaxis_transform(), label="static frame", zorder=4,
                  clip_on=False)  # fmt: skip
    if not len(curve):
        axes.set_yticks([])
        axes.text(0.5, 0.55, "a single frame: nothing to compare it with", color=_QUIET,
                  ha="center", transform=axes.transAxes, fontsize=10)  # fmt: skip
    axes.set_title(
        "Similarity of each frame to the one before", loc="left", fontsize=10, color=_INK
    )
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, fontsize=9, frameon=False,
                borderaxespad=0.1, labelcolor=_QUIET)  # fmt: skip
    inches = (_WIDTH - 2 * _MARGIN) / (scenes.ends[-1] - scenes.starts[0])
    for i, (start, end) in enumerate(zip(scenes.starts, scenes.ends, strict=True)):
        if (end - start) * inches >= 0.09 * len(str(i + 1)) + 0.06:  # the number fits its band
            axes.text((start + end) / 2, 0.985, str(i + 1), ha="center", va="top", fontsize=8.5,
                      color=_QUIET, transform=axes.get_xaxis_transform(), zorder=2)  # fmt: skip


def _draw_sound(axes: Axes, scenes: _Scenes, wave: np.ndarray, sample_rate: int) -> None:
    """Envelope of the waveform: the loudest excursion both ways in each of about 1400 steps."""
    _bands(axes, scenes)
    step = max(1, math.ceil(len(wave) / 1400))
    padded = np.pad(wave, (0, -len(wave) % step)).reshape(-1, step)
    middle = scenes.starts[0] + (np.arange(len(padded)) + 0.5) * step / sample_rate
    axes.fill_between(middle, padded.min(axis=1), padded.max(axis=1), color=_SOUND, linewidth=0)
    peak = max(float(np.abs(wave).max()), 1e-3) * 1.05
    axes.set(ylim=(-peak, peak), yticks=[])
    axes.set_title("Sound", loc="left", fontsize=10, color=_INK)

# SPDX-License-Identifier: Apache-2.0
"""The timeline picture: everything on it, nothing over anything else, written whole."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

import tdc.cli.timeline
from tdc.cli.timeline import draw_timeline
from tdc.errors import InputError
from tdc.media.clock import clock


def inputs(frames: int, scenes: int, size: tuple[int, int] = (64, 48), step: float = 1.0) -> dict:
    """Arguments for `draw_timeline`: scene i is a plain colour of its own."""
    starts = [i * frames // scenes for i in range(scenes)]
    rng = np.random.default_rng(0)
    colours = rng.integers(40, 216, (scenes, 3))
    scene = np.searchsorted(starts, np.arange(frames), side="right") - 1
    pictures = np.broadcast_to(colours[scene][:, None, None], (frames, size[1], size[0], 3))
    similarity = rng.uniform(0.9, 1.0, frames - 1)
    similarity[np.array(starts[1:], dtype=int) - 1] = 0.2
    return {
        "frames": pictures.astype(np.uint8),
        "timestamps": np.arange(frames) * step,
        "similarity": similarity,
        "scene_starts": starts,
        "anchors": starts,
    }


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved."""
    saved: list[Figure] = []
    original = Figure.savefig

    def savefig(self: Figure, *args: object, **options: object) -> None:
        saved.append(self)
        original(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Figure, "savefig", savefig)
    return saved


def thumbnails(figure: Figure) -> list:
    return [axes for axes in figure.axes if axes.images]


def assert_nothing_overlaps(figure: Figure) -> None:
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    page = figure.bbox
    texts = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]
    boxes = [(t.get_text(), t.get_window_extent(renderer)) for t in texts]
    # Axis labels of ticks outside the view are kept by matplotlib but not drawn.
    boxes = [(name, box) for name, box in boxes if box.width and box.overlaps(page)]
    boxes += [(f"axes {i}", a.get_window_extent(renderer)) for i, a in enumerate(figure.axes)]
    inside = {t.get_text() for axes in figure.axes for t in axes.texts}
    for name, box in boxes:
        assert box.x0 >= 0 and box.x1 <= page.x1 and box.y0 >= 0 and box.y1 <= page.y1, name
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        if (one.startswith("axes") and other in inside) or (
            other.startswith("axes") and one in inside
        ):
            continue
        over_x = min(a.x1, b.x1) - max(a.x0, b.x0)
        over_y = min(a.y1, b.y1) - max(a.y0, b.y0)
        assert over_x <= 1 or over_y <= 1, f"{one!r} is drawn over {other!r}"


CASES = {
    "4 scenes": inputs(24, 4),
    "25 scenes": inputs(224, 25),
    "30 scenes": inputs(120, 30),
    "48 scenes": inputs(224, 48),
    "short scenes": inputs(224, 1) | {"scene_starts": [*range(20), *range(20, 224, 7)]},
    "one frame": inputs(1, 1),
    "every frame a scene": inputs(12, 12, step=0.5),
    "flat": inputs(20, 5, size=(1000, 16)),
    "tall": inputs(20, 5, size=(16, 1000)),
    "hours": inputs(200, 12, step=61.5),
}


@pytest.mark.parametrize("name", CASES)
def test_nothing_overlaps(name: str, tmp_path: Path, figures: list[Figure]) -> None:
    rng = np.random.default_rng(0)
    path = draw_timeline(
        tmp_path / "t.png",
        **CASES[name],
        title="a rather long name of a file " * 4,
        notes=[
            ("Question", "What is it that happens here, and why? " * 200),
            ("Answer", "Something."),
        ],
        waveform=rng.uniform(-1, 1, 16000).astype(np.float32),
    )
    assert_nothing_overlaps(figures[0])
    with Image.open(path) as picture:
        assert picture.format == "PNG" and picture.width == 1540 and picture.height < 1250
    assert len(thumbnails(figures[0])) == min(30, len(CASES[name]["scene_starts"]))


def test_shows_every_scene_with_its_time(tmp_path: Path, figures: list[Figure]) -> None:
    case = inputs(24, 4)
    draw_timeline(tmp_path / "t.png", **case, duration=24.0, title="costs $5 and $6")
    [figure] = figures
    for i, axes in enumerate(thumbnails(figure)):
        start = case["scene_starts"][i]
        shown = axes.images[0].get_array()
        np.testing.assert_array_equal(shown[0, 0], case["frames"][start][0, 0])
        assert axes.get_title(loc="left").endswith(clock(start))
    [plot] = [axes for axes in figure.axes if not axes.images]
    curve = plot.lines[[line.get_label() for line in plot.lines].index("similarity")]
    np.testing.assert_array_equal(curve.get_xdata(), case["timestamps"][1:])
    np.testing.assert_array_equal(curve.get_ydata(), case["similarity"])
    lines = [(np.asarray(line.get_xdata()), np.asarray(line.get_ydata())) for line in plot.lines]
    cuts = [x[0] for x, y in lines if y.tolist() == [0, 1]]
    assert cuts == case["scene_starts"][1:]
    assert plot.get_xlim() == (0, 24)
    [title] = [text for text in figure.texts if text.get_text() == "costs $5 and $6"]
    assert not title.get_parse_math()


def test_one_picture_per_scene_is_enough(tmp_path: Path, figures: list[Figure]) -> None:
    case = inputs(40, 5)
    case["frames"] = list(case["frames"][case["scene_starts"]])
    draw_timeline(tmp_path / "t.png", **case)
    for axes, picture in zip(thumbnails(figures[0]), case["frames"], strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array()[0, 0], picture[0, 0])


def test_values_that_are_no_numbers(tmp_path: Path) -> None:
    case = inputs(24, 4)
    case["similarity"][[3, 7]] = np.nan, np.inf
    assert draw_timeline(tmp_path / "t.png", **case).exists()


def test_range_in_the_middle_starts_there(tmp_path: Path, figures: list[Figure]) -> None:
    case = inputs(24, 4)
    case["timestamps"] = case["timestamps"] + 3600
    draw_timeline(tmp_path / "t.png", **case, waveform=np.ones(16000, np.float32))
    plots = [axes for axes in figures[0].axes if not axes.images]
    assert [axes.get_xlim() for axes in plots] == [(3600, 3624)] * 2
    assert plots[1].collections[0].get_datalim(plots[1].transData).x0 >= 3600


def test_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Figure, target: Path, **_: object) -> None:
        target.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(tdc.cli.timeline.Figure, "savefig", broken)
    with pytest.raises(OSError, match="disk full"):
        draw_timeline(tmp_path / "t.png", **inputs(4, 2))
    assert list(tmp_path.iterdir()) == []


def test_bad_input(tmp_path: Path) -> None:
    case = inputs(8, 2)
    changes: list[tuple[dict, str]] = [
        ({"similarity": np.zeros(8)}, r"similarity: got shape \(8,\), expected \(7,\)"),
        ({"timestamps": []}, r"timestamps: got shape \(0,\), expected \[T\] with T >= 1"),
        ({"scene_starts": [0, 8]}, r"scene_starts: got \[0, 8\], expected ascending, from 0"),
        ({"scene_starts": [0, 4, 4]}, "scene_starts: got"),
        ({"scene_starts": [1, 4]}, "scene_starts: got"),
        ({"frames": case["frames"][:5]}, "frames: got 5 pictures, expected one per frame"),
    ]
    for change, message in changes:
        with pytest.raises(ValueError, match=message):
            draw_timeline(tmp_path / "t.png", **(case | change))
    with pytest.raises(InputError, match="no such directory"):
        draw_timeline(tmp_path / "no" / "t.png", **case)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (62, "1:02"), (62.5, "1:02.5"), (59.99, "1:00"), (3662, "1:01:02")],
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text

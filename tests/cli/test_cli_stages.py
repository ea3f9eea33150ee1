# SPDX-License-Identifier: Apache-2.0
"""Times of stages add up, and progress bars show on terminals only."""

from __future__ import annotations

import io
import time

import pytest

from tdc import profiling as stages
from tdc.profiling import measure, stage


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that tests move by hand."""
    hands = [0.0]
    monkeypatch.setattr(stages, "now", lambda: hands[0])
    return hands


def test_an_inner_stage_is_taken_off_the_outer_one(clock):
    with measure() as times:
        clock[0] += 100  # before any stage
        with stage("outer"):
            clock[0] += 1
            with stage("inner"):
                clock[0] += 10
            clock[0] += 2
        clock[0] += 100  # between stages
        with stage("inner"):
            clock[0] += 5
    assert times.seconds == {"outer": 3, "inner": 15}
    assert list(times.seconds) == ["outer", "inner"]


def test_a_stage_that_fails_is_closed(clock):
    with measure() as times:
        with pytest.raises(KeyError), stage("a"):
            clock[0] += 1
            raise KeyError
        with stage("b"):
            clock[0] += 2
    assert times.seconds == {"a": 1, "b": 2}


def test_nothing_is_kept_while_nobody_measures(clock):
    with stage("before"):
        clock[0] += 1
    with measure() as times:
        pass
    with stage("after"):
        clock[0] += 1
    assert times.seconds == {}


def test_stages_work_as_decorators_again_and_again(clock):
    @stage("work")
    def work() -> None:
        clock[0] += 2

    with measure() as times:
        work()
        work()
    assert times.seconds == {"work": 4}


def test_demo_times_are_no_longer_than_the_run(tdc, clip, model_dir, tmp_path):
    began = time.perf_counter()
    done = tdc("demo", "--video", clip, "--model", model_dir, "--out", tmp_path)
    wall = time.perf_counter() - began
    lines = done.out[done.out.index("\nTime to") :].splitlines()
    rows = {line.rsplit(maxsplit=3)[0].strip(): line.split()[-3] for line in lines if "%" in line}
    total = float(rows.pop("total"))
    assert 0 < total <= wall
    assert sum(map(float, rows.values())) == pytest.approx(total, abs=0.006 * len(rows))
    for part in ("decode video", "decode audio", "resize frames", "SigLIP", "DINOv2", "BEATs"):
        assert part in rows
    assert {"connector", "segmentation", "compressor", "language model, prompt"} <= rows.keys()
    assert sum("new token" in row for row in rows) == 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_bars_and_warnings_share_a_terminal(tdc, tmp_path, model_dir, monkeypatch):
    from clips import truncate, write_clip

    whole = write_clip(tmp_path / "w.mkv", frames=200, fps=10, gop=10)
    cut = truncate(whole, tmp_path / "cut.mkv", 0.6)
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    assert tdc("segment", cut, "--model", model_dir).code == 0
    shown = screen.getvalue()
    for text in ("loading DINOv2", "decoding the video", "encoding the frames"):
        assert text in shown
    assert shown.count("is cut off") == 1 and "warning: " in shown
    assert shown.rstrip().endswith(("\x1b[2K", "\x1b[?25h"))  # the last bar is wiped away

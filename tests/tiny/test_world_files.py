# SPDX-License-Identifier: Apache-2.0
"""Clips come back from their files as they were, and data sets are whole and repeatable."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import tiny.world.dataset as dataset
from tdc.encoder.fbank import SAMPLE_RATE
from tdc.errors import InputError
from tdc.media.audio import read_audio
from tdc.media.video import probe, read_image, read_video
from tiny.world import __main__ as command
from tiny.world import make_clip, render_frames, render_sound, write_clip, write_dataset


@pytest.mark.parametrize(("kind", "size"), [("standard", 64), ("fast-cut", 64), ("motion", 128)])
def test_round_trip_through_mp4(tmp_path: Path, kind: str, size: int) -> None:
    for index in range(3):
        clip = make_clip(6, index, kind=kind)
        path = write_clip(tmp_path / "clip.mp4", clip, size=size)
        video, wave = read_video(path), read_audio(path)
        truth = render_frames(clip, size).astype(int)
        assert video.timestamps.tolist() == list(range(clip.num_frames))
        assert video.duration == pytest.approx(clip.num_frames)
        error = np.abs(video.frames.astype(int) - truth)
        assert error.mean() < 6  # half the color resolution, and compression
        # Every frame is closer to its own truth than to any other of the clip.
        for k, frame in enumerate(video.frames.astype(int)):
            far = [np.abs(frame - other).mean() for other in truth]
            same = [j for j, other in enumerate(truth) if (other == truth[k]).all()]
            assert int(np.argmin(far)) in same
        _check_sound(wave, clip)


def _check_sound(wave: np.ndarray, clip) -> None:
    truth = render_sound(clip)
    assert abs(len(wave) - len(truth)) <= 2048  # AAC ends with a whole frame
    wave = np.pad(wave, (0, max(0, len(truth) - len(wave))))[: len(truth)]
    for k, sound in enumerate(clip.sounds):
        second = slice(k * SAMPLE_RATE, (k + 1) * SAMPLE_RATE)
        level = np.sqrt((wave[second] ** 2).mean())
        assert (level > 0.07) if sound else (level < 0.01), (clip.name, k, sound, level)
    assert np.corrcoef(wave, truth)[0, 1] > 0.8 if any(clip.sounds) else True


def test_data_set(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "set", clips=4, split="test", seed=2, questions=3)
    entries = json.loads(path.read_text())
    assert path.name == "test.json" and len(entries) == 12
    assert len({entry["id"] for entry in entries}) == 12
    for entry in entries:
        clip = make_clip(2, int(entry["id"][:6]), split="test")
        human, model = entry["conversations"]
        assert (human["from"], model["from"]) == ("human", "gpt")
        assert human["value"].startswith("<image>\n") and human["value"].count("<image>") == 1
        assert entry["boundaries"] == list(clip.cuts)
        assert probe(tmp_path / "set" / entry["video"]).duration == clip.num_frames
        assert len(entry["options"]) == 4 and entry["answer"] in entry["options"]
        if entry["form"] == "choice":
            assert entry["options"]["ABCD".index(model["value"])] == entry["answer"]
        else:
            assert model["value"] == entry["answer"]
    assert {entry["form"] for entry in entries} == {"choice", "open"}


def test_training_sets_hold_captions(tmp_path: Path) -> None:
    path = write_dataset(tmp_path, clips=2, questions=1, size=16, fps=1)
    assert [e["kind"] == "caption" for e in json.loads(path.read_text())] == [False, True] * 2


def test_images(tmp_path: Path) -> None:
    path = write_dataset(tmp_path, clips=3, kind="image", split="validation")
    for entry in json.loads(path.read_text()):
        clip = make_clip(0, int(entry["id"][:6]), kind="image", split="validation")
        picture = read_image(tmp_path / entry["image"])
        np.testing.assert_array_equal(picture, render_frames(clip)[0])
        assert entry["needs"] == [] and entry["boundaries"] == []


def test_same_arguments_same_set(tmp_path: Path) -> None:
    sets = []
    for name in ("a", "b"):
        path = write_dataset(tmp_path / name, clips=3, seed=9)
        clips = sorted((tmp_path / name / "clips").iterdir())
        sets.append((path.read_bytes(), [clip.read_bytes() for clip in clips]))
    assert sets[0] == sets[1]
    other = write_dataset(tmp_path / "c", clips=3, seed=10)
    assert other.read_bytes() != sets[0][0]


def test_an_interrupted_set_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"clips": 5, "size": 16, "fps": 1}
    whole = write_dataset(tmp_path / "whole", **settings).read_bytes()
    written: list[str] = []
    original = dataset.write_clip

    def counting(path: Path, *args: object, **kwargs: object) -> Path:
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path.name)
        return original(path, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(dataset, "write_clip", counting)
    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path / "part", **settings)
    assert sorted(p.name for p in (tmp_path / "part").iterdir()) == ["clips", "world.json"]
    assert sorted(p.name for p in (tmp_path / "part" / "clips").iterdir()) == written
    before = (tmp_path / "part" / "clips" / "000000.mp4").stat().st_mtime_ns
    written.clear()
    path = write_dataset(tmp_path / "part", **settings)
    assert written == ["000003.mp4", "000004.mp4"]
    assert (tmp_path / "part" / "clips" / "000000.mp4").stat().st_mtime_ns == before
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clips": 0}, "clips: got 0, expected 1 or more"),
        ({"questions": 0}, "questions: got 0, expected 1 or more"),
        ({"size": 33}, "size: got 33, expected an even number, 16 or more"),
        ({"fps": 0}, "fps: got 0, expected 1 to 60"),
        ({"kind": "odd"}, "kind: got 'odd', expected one of standard"),
        ({"split": "dev"}, "split: got 'dev', expected one of train"),
    ],
)
def test_bad_arguments_leave_nothing(
    tmp_path: Path, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        write_dataset(tmp_path / "set", **{"clips": 1, **arguments})  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="is not empty and holds no set"):
        write_dataset(tmp_path, clips=1)
    assert [p.name for p in tmp_path.iterdir()] == ["letter.txt"]
    write_dataset(tmp_path / "set", clips=1, size=16, fps=1)
    with pytest.raises(InputError, match="holds a set of other settings"):
        write_dataset(tmp_path / "set", clips=1, size=16, fps=1, seed=1)
    (tmp_path / "set" / "world.json").write_text("{")
    with pytest.raises(InputError, match=r"world\.json cannot be read"):
        write_dataset(tmp_path / "set", clips=1, size=16, fps=1)
    with pytest.raises(InputError, match="cannot make this folder"):
        write_dataset(tmp_path / "letter.txt" / "set", clips=1)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = [str(tmp_path / "set"), "--clips", "2", "--split", "test", "--size", "32"]
    assert command.main(line) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"{tmp_path}/set/test.json: 2 clips, 8 conversations"
    assert second.startswith("needing ")
    assert probe(tmp_path / "set" / "clips" / "000001.mp4").width == 32

# SPDX-License-Identifier: Apache-2.0
"""``--fps``, ``--frames``, ``--start`` and ``--end``; files on the standard input."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from clips import tone, write_clip
from safetensors import safe_open
from safetensors.torch import load_file


@pytest.fixture
def pipe(monkeypatch):
    """``pipe(data)`` is what comes on the standard input."""

    def give(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    return give


@pytest.fixture(autouse=True)
def temporary(tmp_path_factory, monkeypatch):
    """Where temporary files go: empty afterwards."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield
    assert not list(folder.iterdir())


@pytest.mark.parametrize("features", ["color", "model"])
def test_scenes_of_a_part(tdc, clip, model_dir, features):
    model = ["--model", model_dir] if features == "model" else []

    def found(*options) -> tuple:
        done = tdc("segment", clip, "--json", *model, *options)
        assert done.code == 0, done.err
        data = json.loads(done.out)
        return data["frame_times"], data["scenes"][0]["start"], data["scenes"][-1]["end"]

    assert found("--start", 1, "--end", 3, "--fps", 2) == ([1, 1.5, 2, 2.5], 1, 3)
    assert found("--frames", 5) == ([0, 0.8, 1.6, 2.4, 3.2], 0, 4)
    assert found("--frames", 2, "--start", 3) == ([3, 3.5], 3, 4)
    assert found("--fps", 2, "--end", 9, "--max-frames", 2)[0] == [0, 2]


def test_context_of_a_part(tdc, clip, tmp_path, model_dir):
    out = tmp_path / "c.safetensors"
    options = ["--start", 1, "--end", 3, "--model", model_dir]
    assert tdc("encode", clip, "-o", out, "--fps", 2, *options).code == 0
    assert load_file(out)["frame_times"].tolist() == [1, 1.5, 2, 2.5]
    with safe_open(out, "pt") as file:
        about = file.metadata()
    assert [about[k] for k in ("start", "end", "duration", "fps")] == [
        "1.000",
        "3.000",
        "4.000",
        "2",
    ]
    assert tdc("encode", clip, "-o", out, "--frames", 3, *options).code == 0
    assert load_file(out)["frame_times"].tolist() == pytest.approx([1, 1 + 2 / 3, 1 + 4 / 3])


@pytest.mark.slow
def test_lvcot_of_a_part(tdc, clip, model_dir):
    options = ["--lvcot", 2, "--start", 2, "--max-new-tokens", 2, "--model", model_dir]
    done = tdc("chat", clip, "What?", *options)
    assert done.code == 0 and "0:02.0 to 0:03.0" in done.err and "to 0:04.0" in done.err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--fps", 2, "--frames", 3], "--fps and --frames came together"),
        (["--start", 3, "--end", 2], "--end: got 2 s, expected more than --start (3 s)"),
        (["--start", 4], "--start: got 4 s, but"),
    ],
)
def test_options_that_contradict(tdc, clip, tmp_path, options, says):
    out = ["-o", tmp_path / "c.safetensors"]
    for command in (["segment", clip], ["encode", clip, *out], ["chat", clip, "?"]):
        assert says in tdc(*command, *options).refused()


def test_a_video_on_the_standard_input(tdc, clip, model_dir, pipe):
    data = clip.read_bytes()
    assert data.find(b"moov") > data.find(b"mdat")  # its index stands at its end
    pipe(data)
    found = json.loads(tdc("segment", "-", "--json").out)
    assert found["video"] == "the standard input" and found["duration"] == 4
    chat = ["What?", "--model", model_dir, "--max-new-tokens", 3]
    pipe(data)
    assert tdc("chat", "-", *chat) == tdc("chat", clip, *chat)


@pytest.mark.slow
def test_context_of_the_standard_input(tdc, clip, tmp_path, model_dir, pipe):
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for video, out in zip((clip, "-"), files, strict=True):
        pipe(clip.read_bytes())
        assert tdc("encode", video, "-o", out, "--model", model_dir).code == 0
    one, other = map(load_file, files)
    assert all(one[name].equal(other[name]) for name in one)
    pipe(clip.read_bytes())
    done = tdc("segment", "-", "--plot", tmp_path / "plot.png", "--end", 2)
    assert done.code == 0 and (tmp_path / "plot.png").stat().st_size > 0


@pytest.mark.slow
def test_sound_on_the_standard_input(tdc, clip, tmp_path, model_dir, pipe):
    sound = write_clip(tmp_path / "a.wav", video=False, audio=tone(2), audio_codec="pcm_s16le")
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for audio, out in zip((sound, "-"), files, strict=True):
        pipe(sound.read_bytes())
        done = tdc("encode", clip, "-o", out, "--audio", audio, "--model", model_dir)
        assert done.code == 0, done.err
    assert load_file(files[0])["tokens"].equal(load_file(files[1])["tokens"])
    pipe(b"no sound")
    line = tdc("encode", clip, "-o", files[0], "--audio", "-").refused()
    assert "not an audio or video file: the standard input is a text" in line


def test_a_bad_standard_input(tdc, clip, tmp_path, pipe, monkeypatch):
    pipe(b"words\n")
    assert "not a video: the standard input is a text" in tdc("segment", "-").refused()
    pipe(b"")
    assert "the standard input is empty" in tdc("segment", "-").refused()
    pipe(clip.read_bytes()[:3000])
    assert "the standard input was cut off" in tdc("segment", "-").refused()
    line = tdc("chat", "-").refused()
    assert "cannot be the video and the questions at once; give the question after" in line
    line = tdc("chat", clip, "--audio", "-").refused()
    assert "cannot be the sound and the questions at once" in line
    out = tmp_path / "c.safetensors"
    line = tdc("encode", "-", "-o", out, "--audio", "-").refused()
    assert "cannot be the video and the sound at once; give one of them as a file" in line
    monkeypatch.setattr(sys, "stdin", None)
    assert "the standard input is closed" in tdc("segment", "-").refused()


def test_a_network_address_is_refused(tdc, clip, tmp_path):
    says = "this library fetches nothing by https"
    assert says in tdc("segment", "https://example.org/v.mp4").refused()
    sound = ["--audio", "https://example.org/a.wav"]
    assert says in tdc("encode", clip, "-o", tmp_path / "c", *sound).refused()
    assert tdc("segment", clip.as_uri()).code == 0


@pytest.mark.slow
def test_a_shell_pipe(clip):
    command = [sys.executable, "-m", "tdc", "segment", "-", "--json"]
    with clip.open("rb") as file:
        cat = subprocess.Popen(["cat"], stdin=file, stdout=subprocess.PIPE)
    root = Path(__file__).parents[2]
    done = subprocess.run(command, stdin=cat.stdout, capture_output=True, check=True, cwd=root)
    cat.wait()
    assert json.loads(done.stdout)["duration"] == 4

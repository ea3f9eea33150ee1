# SPDX-License-Identifier: Apache-2.0
"""Bad and odd input: one line and exit code 2, or used with a warning; no half-written file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from clips import tone, truncate, write_clip
from model_folders import configure
from PIL import Image
from safetensors.torch import load_file


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """A folder that must stay empty."""
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def commands(video: object, outputs: Path, model: Path) -> list[list[object]]:
    """Every command that reads a video."""
    return [
        ["segment", video, "--model", model, "--plot", outputs / "plot.png"],
        ["encode", video, "-o", outputs / "ctx.safetensors", "--model", model],
        ["chat", video, "What is this?", "--model", model],
        ["demo", "--video", video, "--out", outputs / "demo", "--model", model],
    ]


# --- files that are no videos --------------------------------------------------------------------


def no_video(kind: str, folder: Path) -> Path:
    path = folder / f"{kind}.mp4"
    if kind == "text":
        path.write_text("just some words, no film\n" * 40)
    elif kind == "image":
        path = folder / "image.png"
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)
    elif kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "sound":
        write_clip(path, video=False, audio=tone(1))
    elif kind == "no index":
        whole = write_clip(folder / "whole.mp4", frames=30)
        truncate(whole, path, 0.7)
    elif kind == "no frames":
        data = write_clip(folder / "whole.mkv", frames=3, codec="ffv1", gop=1).read_bytes()
        path = folder / "none.mkv"
        path.write_bytes(data[: data.index(b"\x1f\x43\xb6\x75")])  # up to the first cluster
    return path


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("missing", "no such file: "),
        ("text", "not a video"),
        ("image", "is an image (png)"),
        ("empty", "is empty (0 bytes)"),
        ("folder", "is a directory, expected a video"),
        ("sound", "it holds sound only"),
        ("no index", "was cut off, its index"),
        ("no frames", "no frames"),
    ],
)
def test_no_video(tdc, tmp_path, outputs, model_dir, kind, says):
    path = no_video(kind, tmp_path)
    for arguments in commands(path, outputs, model_dir):
        line = tdc(*arguments).refused()
        assert says in line and path.name in line
    assert not list(outputs.iterdir())


# --- videos that are odd but usable --------------------------------------------------------------


def test_cut_off_in_the_middle_is_used_with_a_warning(tdc, tmp_path, model_dir):
    whole = write_clip(tmp_path / "w.mkv", frames=200, fps=10, audio=tone(20), gop=10)
    cut = truncate(whole, tmp_path / "cut.mkv", 0.6)
    done = tdc("segment", cut, "--json", "--model", model_dir)
    assert done.code == 0
    (line,) = done.err.splitlines()
    assert line.startswith("warning: ") and "cut off" in line and "of 20.0 s" in line
    assert 5 < json.loads(done.out)["duration"] < 18
    done = tdc("chat", cut, "What?", "--model", model_dir, "--max-new-tokens", 2)
    assert done.code == 0 and "cut off" in done.err and done.out


def test_no_audio_track_means_silence(tdc, tmp_path, model_dir):
    silent = write_clip(tmp_path / "v.mp4", frames=30, fps=10)
    out = tmp_path / "c.safetensors"
    done = tdc("encode", silent, "-o", out, "--model", model_dir)
    assert (done.code, done.err) == (0, "") and " 0 audio" in done.out
    assert len(load_file(out)["tokens"]) == 3 * (6 + 1)


def test_audio_file_without_audio(tdc, clip, tmp_path, outputs, model_dir):
    silent = write_clip(tmp_path / "silent.mp4", frames=3)
    for arguments in commands(clip, outputs, model_dir)[1:]:
        line = tdc(*arguments, "--audio", silent).refused()
        assert "silent.mp4 has no audio track" in line
        assert "no such file" in tdc(*arguments, "--audio", tmp_path / "none.wav").refused()
    assert not list(outputs.iterdir())


@pytest.mark.parametrize("seconds", [0.02, 0.5])
def test_audio_under_one_second(tdc, tmp_path, model_dir, seconds):
    short = write_clip(tmp_path / "v.mp4", frames=30, fps=10, audio=tone(seconds))
    out = tmp_path / "c.safetensors"
    done = tdc("encode", short, "-o", out, "--model", model_dir)
    assert (done.code, done.err) == (0, "")
    assert load_file(out)["tokens"].isfinite().all()


def test_one_frame(tdc, tmp_path, model_dir):
    single = write_clip(tmp_path / "v.mp4", frames=1)
    for arguments in commands(single, tmp_path, model_dir):
        done = tdc(*arguments)
        assert done.code == 0, done.err
    found = json.loads(tdc("segment", single, "--json", "--model", model_dir).out)
    assert len(found["scenes"]) == 1 and found["similarity"] == []
    done = tdc("chat", single, "What?", "--lvcot", 3, "--model", model_dir, "--max-new-tokens", 2)
    assert done.code == 0 and len(done.err.splitlines()) == 1  # one frame is one segment


@pytest.mark.parametrize("size", [(1000, 16), (16, 1000)])
def test_extreme_aspect_ratio(tdc, tmp_path, model_dir, size):
    video = write_clip(tmp_path / "v.mp4", frames=6, fps=2, size=size, codec="mpeg4")
    for arguments in commands(video, tmp_path, model_dir):
        done = tdc(*arguments)
        assert (done.code, "warning" in done.err) == (0, False), done.err
    tokens = load_file(tmp_path / "ctx.safetensors")["tokens"]
    assert len(tokens) and tokens.isfinite().all()
    assert (tmp_path / "demo" / "timeline.png").exists()


def test_rotation_metadata_gives_the_upright_context(tdc, tmp_path, model_dir):
    results = []
    for rotation in (0, 90):
        video = write_clip(
            tmp_path / f"{rotation}.mp4", frames=3, fps=1, size=(96, 64), rotation=rotation
        )
        found = json.loads(tdc("segment", video, "--json", "--model", model_dir).out)
        assert (found["width"], found["height"]) == (96, 64)
        out = tmp_path / f"{rotation}.safetensors"
        assert tdc("encode", video, "-o", out, "--model", model_dir).code == 0
        results.append(load_file(out))
    assert len(results[0]["tokens"]) == len(results[1]["tokens"])
    # Both were encoded on their own, so pixels differ by what H.264 lost.
    assert np.allclose(results[0]["similarity"], results[1]["similarity"], atol=0.05)


def test_variable_frame_rate_follows_the_clock(tdc, tmp_path, model_dir):
    """Ten frames in the first second, then one a second."""
    times = [i / 10 for i in range(10)] + [1.0, 2.0, 3.0, 4.0]
    video = write_clip(tmp_path / "v.mp4", times=times, gop=1)
    found = json.loads(tdc("segment", video, "--json", "--model", model_dir).out)
    assert found["frame_times"][:5] == [0, 1, 2, 3, 4] and len(found["frame_times"]) <= 6


def test_more_frames_than_the_budget(tdc, tmp_path, own_model):
    configure(own_model, max_frames=5)
    video = write_clip(tmp_path / "v.mp4", frames=24, fps=2)
    for arguments in commands(video, tmp_path, own_model):
        done = tdc(*arguments)
        assert done.code == 0
        (line,) = [x for x in done.err.splitlines() if x.startswith("warning: ")]
        assert "12 frames" in line and "5 evenly spaced" in line
    assert load_file(tmp_path / "ctx.safetensors")["frame_times"].tolist() == [0, 2, 4, 7, 9]
    done = tdc("segment", video, "--max-frames", 12, "--json", "--model", own_model)
    assert done.err == "" and len(json.loads(done.out)["frame_times"]) == 12


# --- questions and arguments ---------------------------------------------------------------------


def test_question_longer_than_the_context(tdc, clip, outputs, own_model):
    configure(own_model, max_context_length=400)
    question = "a " * 200  # 400 bytes for the language model, 202 tokens for the compressor
    for arguments in (
        ["chat", clip, question, "--model", own_model],
        ["chat", clip, question, "--model", own_model, "--lvcot", 2],
        ["encode", clip, "-o", outputs / "c", "--question", question, "--model", own_model],
        ["demo", "--video", clip, "--out", outputs, "--question", question, "--model", own_model],
    ):
        line = tdc(*arguments).refused()
        assert line.startswith("tdc: the question has ") and "context of 400" in line
    assert not list(outputs.iterdir())


def test_question_missing_or_empty(tdc, clip, model_dir):
    assert "the question is empty" in tdc("chat", clip, " ", "--model", model_dir).refused()
    assert "--lvcot needs a question" in tdc("chat", clip, "--lvcot", 2).refused()


def test_output_in_a_missing_folder_is_noticed_before_the_work(tdc, clip, tmp_path, monkeypatch):
    def never(*_):
        raise AssertionError("the model was loaded first")

    for loader in ("tdc.session.load_model", "tdc.checkpoints.load.load_dinov2"):
        monkeypatch.setattr(loader, never)
    gone = tmp_path / "none"
    for arguments in (
        ["encode", clip, "-o", gone / "c.safetensors"],
        ["segment", clip, "--plot", gone / "p.png"],
    ):
        assert f"no such directory: {gone}" in tdc(*arguments).refused()
    assert "it is a directory" in tdc("encode", clip, "-o", tmp_path).refused()
    (tmp_path / "file").touch()
    assert "cannot make this folder" in tdc("demo", "--out", tmp_path / "file").refused()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "required: COMMAND"),
        (["dance"], "invalid choice: 'dance'"),
        (["segment"], "required: VIDEO"),
        (["segment", "v", "--scenes", "0"], "--scenes: got '0', expected a whole number"),
        (["segment", "v", "--fps", "nan"], "--fps: got 'nan', expected a number above 0"),
        (["segment", "v", "--threshold", "x"], "--threshold: got 'x', expected a number"),
        (["encode", "v"], "required: -o/--output"),
        (["chat", "v", "q", "--lvcot", "-1"], "--lvcot: got '-1'"),
        (["chat", "v", "q", "--temperature", "-1"], "--temperature: got '-1', expected a number"),
        (["chat", "v", "q", "--dtype", "int8"], "--dtype: invalid choice: 'int8'"),
    ],
)
def test_bad_arguments(tdc, arguments, says):
    done = tdc(*arguments)
    assert (done.code, done.out) == (2, "") and says in done.err.splitlines()[-1]


@pytest.mark.parametrize("device", ["gpu", "cuda:97", "mps"])
def test_device_that_is_not_there(tdc, clip, device):
    assert f"--device {device}: " in tdc("chat", clip, "Who?", "--device", device).refused()


def test_unknown_backend_in_the_environment(tmp_path):
    import subprocess

    done = subprocess.run(
        [sys.executable, "-m", "tdc", "doctor"],
        env={**__import__("os").environ, "TDC_BACKEND": "fast"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("tdc: TDC_BACKEND: ") and done.stderr.count("\n") == 1


def test_missing_package_is_named(tdc, clip, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    assert "av is not installed; it comes with the extra" in tdc("segment", clip).refused()


# --- convert -------------------------------------------------------------------------------------


def test_convert_refuses_what_is_no_release(tdc, tmp_path, own_model):
    out = tmp_path / "converted"
    assert "no such folder" in tdc("convert", tmp_path / "none", out).refused()
    (tmp_path / "empty").mkdir()
    assert "holds no weights" in tdc("convert", tmp_path / "empty", out).refused()
    (tmp_path / "bert").mkdir()
    line = tdc("convert", own_model, out, "--bert", tmp_path / "bert").refused()
    assert "model_type 'tdc'; expected 'cambrian_qwen'" in line
    assert "exists and is not empty" in tdc("convert", own_model, own_model).refused()
    assert not out.exists()


# --- bugs and interruptions ----------------------------------------------------------------------


def test_interruption_leaves_no_file(tdc, clip, outputs, model_dir, monkeypatch):
    def interrupted(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("tdc.cli.encode._save", interrupted)
    done = tdc("encode", clip, "-o", outputs / "c.safetensors", "--model", model_dir)
    assert (done.code, done.err) == (130, "tdc: interrupted\n")
    assert not list(outputs.iterdir())


def test_bugs_keep_their_traceback(tdc, clip, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("tdc.session.load_model", broken)
    with pytest.raises(ZeroDivisionError):
        tdc("chat", clip, "Who?")

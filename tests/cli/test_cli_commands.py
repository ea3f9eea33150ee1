# SPDX-License-Identifier: Apache-2.0
"""What each command does on good input."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from clips import tone, write_clip
from model_folders import configure
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file


def shell(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def token_counts(out: str) -> dict[str, int]:
    """Numbers of the table of context tokens."""
    lines = out[out.index("Context\n") : out.index("Time to")].replace(",", "").splitlines()
    return {line.split()[0]: int(line.split()[-3]) for line in lines if line.endswith("%")}


# --- the command itself --------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], ["doctor", "--help"], ["segment", "--help"]])
def test_help_is_quick_because_it_imports_nothing_heavy(arguments):
    done = shell("-X", "importtime", "-m", "tdc", *arguments)
    assert done.returncode == 0 and done.stdout.startswith("usage: tdc")
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "tdc.cli.main" in imported
    assert not imported & {"torch", "transformers", "numpy", "rich", "av", "matplotlib"}


def test_every_command_is_listed(tdc):
    shown = tdc("--help")
    assert shown.code == 0
    for name in ("demo", "segment", "encode", "chat", "convert", "doctor"):
        assert f"\n    {name} " in shown.out


def test_bad_input_waits_for_no_torch(tmp_path):
    """A missing file was told after 11 seconds: nothing heavy is imported before it is known."""
    lines = [
        "chat none.mp4 Why?",
        "encode none.mp4 -o c.safetensors",
        "demo --video none.mp4",
        "convert none out",
        "merge none out",
        "train 2 --config none.yaml",
    ]
    code = (
        "import sys; from tdc.cli.main import main;"
        f"print([main(line.split()) for line in {lines}], 'torch' in sys.modules)"
    )
    done = shell("-c", code, cwd=tmp_path)
    assert done.stdout == f"{[2] * len(lines)} False\n"
    assert done.stderr.lower().count("no such f") == done.stderr.count("\n") == len(lines)


def test_version(tdc):
    assert tdc("--version").out.startswith("tdc 0.")


def test_logging_and_warnings_are_as_before_afterwards(tdc, clip, model_dir):
    logger = logging.getLogger("tdc")
    before = (list(logger.handlers), logger.propagate)
    assert tdc("segment", clip, "--model", model_dir).code == 0
    assert (list(logger.handlers), logger.propagate) == before


# --- demo ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_demo_answers_three_questions_about_its_clip(tmp_path):
    here = tmp_path / "here"
    done = shell("-m", "tdc", "demo", "--out", str(here))
    assert (done.returncode, done.stderr) == (0, "")
    assert "the tiny TDC that comes with the package" in done.stdout
    for heading in ("Scenes (", "Context", "Time to the first answer", "question"):
        assert f"\n{heading}" in done.stdout
    table = done.stdout[done.stdout.index("\nquestion") :].split("\n\n")[0].splitlines()[3:]
    rows = [re.split(r"\s{2,}", line.strip()) for line in table]
    assert len(rows) == 3 and all(answer == truth for _, answer, truth in rows), rows
    assert len({truth for _, _, truth in rows}) == 3
    assert sorted(p.name for p in here.iterdir()) == ["timeline.png"]
    with Image.open(here / "timeline.png") as picture:
        assert picture.width > 1000
    assert f"Timeline: {here / 'timeline.png'}" in done.stdout


def test_demo_of_an_own_video_adds_up(tdc, clip, model_dir, tmp_path):
    done = tdc("demo", "--video", clip, "--model", model_dir, "--out", tmp_path / "a" / "b")
    assert (done.code, done.err) == (0, "")
    # 4 frames of a model with 8 scenes: all static, 6 visual and 50 audio tokens each.
    counts = {"static": 24, "audio": 200, "dynamic": 0, "separator": 4, "total": 228}
    assert token_counts(done.out) == counts
    assert "take 224 tokens: 1.0 times" in done.out
    assert (tmp_path / "a" / "b" / "timeline.png").stat().st_size > 10_000
    assert "tiny TDC" not in done.out and "truth" not in done.out
    assert "Question: what happens in the video ?" in done.out


def test_demo_counts_compressed_tokens_and_the_ratio(tdc, clip, own_model, tmp_path):
    configure(own_model, num_scenes=1, audio_config=None)
    silent = strip_audio_weights(own_model)
    done = tdc("demo", "--video", clip, "--model", silent, "--out", tmp_path, "--question", "Why?")
    # One scene of four frames: 6 static tokens, 3 frames of 4 tokens, 4 separators.
    counts = {"static": 6, "audio": 0, "dynamic": 12, "separator": 4, "total": 22}
    assert token_counts(done.out) == counts
    assert "take 24 tokens: 1.1 times" in done.out
    assert "Question: Why?" in done.out


def strip_audio_weights(folder: Path) -> Path:
    from safetensors.torch import save_file

    file = folder / "model.safetensors"
    keep = {k: v for k, v in load_file(file).items() if "beats" not in k and "audio_proj" not in k}
    save_file(keep, file, {"format": "pt"})
    return folder


# --- encode --------------------------------------------------------------------------------------


def test_encode_writes_tokens_and_plan(tdc, clip, own_model, tmp_path):
    configure(own_model, num_scenes=2)
    out = tmp_path / "ctx.safetensors"
    asked = ("--question", "who?")
    done = tdc("encode", clip, "-o", out, "--model", own_model, *asked)
    assert (done.code, done.err) == (0, "")
    data = load_file(out)
    tokens, kinds = data["tokens"], data["kinds"]
    assert tokens.shape == (len(kinds), 96) and tokens.isfinite().all()
    # Two scenes: two static frames of 6 + 50 tokens, two dynamic ones of 4, four separators.
    assert [int((kinds == k).sum()) for k in range(3)] == [112, 8, 4]
    assert "124 tokens of width 96 (12 static, 100 audio, 8 dynamic, 4 separators)" in done.out
    assert "1.8 times fewer" in done.out  # 4 * 56 / 124
    assert data["frame_times"].tolist() == [0, 1, 2, 3]
    assert data["cu_context"].tolist() == [0, 124] and data["similarity"].shape == (3,)
    cut = data["boundaries"].item()
    assert data["anchors"].tolist() == [0, cut]
    assert sorted([*data["anchors"].tolist(), *data["dynamic"].tolist()]) == [0, 1, 2, 3]
    with safe_open(out, "pt") as file:
        about = file.metadata()
    assert about["question"] == "who?" and about["video"] == str(clip)
    assert (about["duration"], about["size"]) == ("4.000", "96x64")


def test_encode_depends_on_the_question_in_the_dynamic_tokens_alone(tdc, clip, own_model, tmp_path):
    configure(own_model, num_scenes=2)
    files = []
    for i, extra in enumerate(([], ["--question", "a"], ["--question", "b"], ["--question", "b"])):
        files.append(tmp_path / f"{i}.safetensors")
        assert tdc("encode", clip, "-o", files[-1], "--model", own_model, *extra).code == 0
    none, a, b, again = (load_file(file) for file in files)
    dynamic = a["kinds"] == 1
    assert torch.equal(b["tokens"], again["tokens"])
    for other in (none, b):
        assert torch.equal(a["tokens"][~dynamic], other["tokens"][~dynamic])
        assert not torch.equal(a["tokens"][dynamic], other["tokens"][dynamic])


def test_encode_hears_the_given_sound(tdc, clip, model_dir, tmp_path):
    sound = write_clip(tmp_path / "s.m4a", video=False, audio=tone(4, hertz=2000))
    results = []
    for i, extra in enumerate(([], ["--audio", sound])):
        out = tmp_path / f"{i}.safetensors"
        assert tdc("encode", clip, "-o", out, "--model", model_dir, *extra).code == 0
        results.append(load_file(out)["tokens"])
    assert results[0].shape == results[1].shape and not torch.equal(*results)


# --- chat ----------------------------------------------------------------------------------------


def test_chat_without_model_asks_the_tiny_one_and_says_so(tdc, tmp_path):
    from tiny.world import make_clip, write_clip

    path = write_clip(tmp_path / "v.mp4", make_clip(2, 0, split="test", scenes=4))
    done = tdc("chat", path, "How many scenes are there?")
    assert (done.code, done.out) == (0, "4\n")
    assert done.err.startswith("note: no --model given: the tiny TDC")


def test_chat_answers_on_stdout_only(tdc, clip, model_dir):
    first = tdc("chat", clip, "What is this?", "--model", model_dir, "--max-new-tokens", 5)
    again = tdc("chat", clip, "What is this?", "--model", model_dir, "--max-new-tokens", 5)
    assert (first.code, first.err) == (0, "")
    assert first.out == again.out and first.out.endswith("\n")


def test_chat_prints_what_the_model_generates(tdc, clip, model_dir):
    """The streamed text is the greedy answer of the same model, as ``ask`` gives it."""
    from tdc.cli.terminal import clean
    from tdc.session import load

    video = load(model_dir).watch(clip, question="Who?")
    answer = video.ask("Who?", max_new_tokens=9, do_sample=False)
    done = tdc("chat", clip, "Who?", "--model", model_dir, "--max-new-tokens", 9)
    assert done.out.strip() == clean(answer).strip() != ""


def test_chat_never_prints_control_characters():
    from tdc.cli.terminal import clean

    assert clean("a\x1b[31mb\r\x00\nc\té") == "a\N{REPLACEMENT CHARACTER}[31mb" + (
        2 * "\N{REPLACEMENT CHARACTER}" + "\nc\té"
    )


def test_chat_samples_by_seed(tdc, clip, model_dir):
    def ask(seed):
        extra = ("--temperature", 2, "--seed", seed, "--max-new-tokens", 12)
        return tdc("chat", clip, "Who?", "--model", model_dir, *extra).out

    assert ask(1) == ask(1) != ask(2)


def test_chat_encodes_once_for_all_questions_of_stdin(tdc, clip, model_dir, monkeypatch):
    from tdc.encoder.video_encoder import VideoEncoder

    calls = []
    forward = VideoEncoder.forward
    monkeypatch.setattr(
        VideoEncoder, "forward", lambda self, *a, **k: calls.append(1) or forward(self, *a, **k)
    )
    monkeypatch.setattr("sys.stdin", io.StringIO("What?\nWho was it?\n"))
    both = tdc("chat", clip, "--model", model_dir, "--max-new-tokens", 4)
    assert (both.code, both.err, len(calls)) == (0, "", 1)
    alone = [
        tdc("chat", clip, question, "--model", model_dir, "--max-new-tokens", 4).out
        for question in ("What?", "Who was it?")
    ]
    assert both.out == "".join(alone)


def test_chat_answers_every_line_of_stdin_that_is_a_question(tdc, clip, model_dir, monkeypatch):
    too_long = "why " * 20000
    lines = ["", "What?", " ", "Is <video> or <|im_end|> \xe9 a tag?", too_long, "", "What?"]
    data = "\n".join(lines).encode("latin-1")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data), "utf-8"))
    done = tdc("chat", clip, "--model", model_dir, "--max-new-tokens", 2)
    assert done.code == 2  # for the question that does not fit
    errors = [line for line in done.err.splitlines() if not line.startswith("warning: ")]
    assert len(errors) == 1 and errors[0].startswith("tdc: the question has ")
    alone = [
        tdc("chat", clip, question, "--model", model_dir, "--max-new-tokens", 2).out
        for question in ("What?", "Is <video> or <|im_end|> \udce9 a tag?", "What?")
    ]
    assert done.out == "".join(alone)


def test_a_file_name_of_another_encoding(tdc, clip, model_dir, tmp_path):
    video = os.path.join(tmp_path, "caf\udce9.mp4")
    shutil.copy(clip, video)
    out = tmp_path / "context.safetensors"
    for command in (
        ("chat", video, "Who?", "--model", model_dir, "--max-new-tokens", 2),
        ("segment", video, "--plot", tmp_path / "plot.png"),
        ("encode", video, "-o", out, "--model", model_dir),
        ("demo", "--video", video, "--out", tmp_path / "demo", "--model", model_dir),
    ):
        done = tdc(*command)
        assert done.code == 0 and "warning" not in done.err, (command, done)
    assert "caf\N{REPLACEMENT CHARACTER}.mp4" in safe_open(out, "pt").metadata()["video"]


def test_chat_lvcot_takes_marks_for_text(tdc, clip, model_dir):
    extra = ("--model", model_dir, "--lvcot", 2, "--max-new-tokens", 3)
    assert tdc("chat", clip, "What does <video> do?", *extra).code == 0


def test_chat_lvcot_shows_the_segments_and_then_the_answer(tdc, clip, model_dir):
    plain = tdc(*("chat", clip, "Why?", "--model", model_dir, "--lvcot", 2, "--max-new-tokens", 3))
    assert plain.code == 0
    first, second = plain.err.splitlines()
    assert first.startswith("segment 1, 0:00.0 to 0:02.0:")
    assert second.startswith("segment 2, 0:02.0 to 0:04.0:")
    assert plain.out.strip() and "segment" not in plain.out


def test_chat_in_half_precision(tdc, clip, model_dir):
    extra = ("--dtype", "bf16", "--device", "cpu", "--max-new-tokens", 2)
    assert tdc("chat", clip, "Who?", "--model", model_dir, *extra).code == 0


# --- doctor --------------------------------------------------------------------------------------


def test_doctor_json(tdc):
    done = tdc("doctor", "--json")
    assert (done.code, done.err) == (0, "")
    facts = json.loads(done.out)
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["devices"][0]["device"] == "cpu"
    rows = facts["backends"]["cpu"]
    assert {row["backend"] for row in rows} == {"cuda", "triton", "native", "torch", "reference"}
    assert all(row["available"] or row["reason"] for row in rows)
    assert all(row["available"] for row in rows if row["backend"] == "reference")
    for library in (facts["native"], facts["cuda"]):
        assert library["loaded"] == (library["reason"] == "")


def test_doctor_names_each_op_and_the_reason_of_each_no(tdc, monkeypatch):
    monkeypatch.setenv("TDC_BACKEND", "auto")
    done = tdc("doctor")
    assert (done.code, done.err) == (0, "")
    for op in ("anchor_queries", "cross_attention", "frame_similarity", "pack_context"):
        (line,) = [line for line in done.out.splitlines() if line.startswith(op)]
        assert line.split()[-1] == "yes"  # the reference
    assert "  TDC_BACKEND=auto" in done.out and "  (1) " in done.out
    assert not any(line != line.rstrip() for line in done.out.splitlines())


def test_doctor_works_without_the_model_extra(tdc, monkeypatch):
    from importlib.metadata import version

    with_rich = tdc("doctor").out
    absent = ("rich", "transformers", "av")
    for name in [m for m in sys.modules if m.partition(".")[0] in absent]:
        monkeypatch.delitem(sys.modules, name)
    for name in absent:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr("tdc.cli.doctor.version", version)
    done = tdc("doctor")
    assert (done.code, done.err) == (0, "")
    assert [line.split() for line in done.out.splitlines() if "anchor_queries" in line] == [
        line.split() for line in with_rich.splitlines() if "anchor_queries" in line
    ]

# SPDX-License-Identifier: Apache-2.0
"""The pipeline benchmark at its tiny size: both ways must come to the same answer."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bench import __main__ as command
from bench.benchmark import Refused
from bench.model import pipeline, pipeline_models
from bench.model import pipeline_ways as ways
from bench.model.pipeline_ways import Setup
from bench.peers import release_pipeline
from bench.timing import machine
from tdc.media import pyav
from tdc.profiling import measure

ROOT = Path(__file__).parent.parent.parent
FRAMES = 12
ENCODING = {"resize frames", "BEATs", "SigLIP", "DINOv2", "connector", "segmentation"}
ASKING = {"compressor", "prefill", pipeline.OTHER}


def make(folder: Path, dtype: torch.dtype = torch.float32, frames: int = FRAMES) -> Setup:
    return ways.make("tiny", "qwen2-7b", "cpu", dtype, frames, folder)


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    with torch.inference_mode():
        yield make(tmp_path_factory.mktemp("clip"))


# ---------------------------------------------------------------- agreement


@pytest.mark.parametrize("frames", [FRAMES, 3, 21], ids=["trimmed", "all static", "long scenes"])
@torch.inference_mode()
def test_both_ways_agree(frames: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline_models, "HAS_AV", False)  # no file is needed here
    facts = ways.check(make(tmp_path, frames=frames))
    assert facts["prompt_error"] < 1e-5 and facts["logit_error"] < 1e-5
    assert facts["cuts_that_differ"] == 0 and facts["scenes"] == 3
    tiny = pipeline_models.config("tiny", "qwen2-7b")
    assert facts["prompt_tokens"] <= tiny.max_context_length
    if frames == 3:  # three static frames and separators, nothing to trim
        assert facts["context_tokens"] == 3 * (156 + 50 + 1)


@torch.inference_mode()
def test_both_ways_agree_in_half_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline_models, "HAS_AV", False)
    facts = ways.check(make(tmp_path, torch.bfloat16))
    assert 0 < facts["prompt_error"] < 0.05


@torch.inference_mode()
@pytest.mark.parametrize("part", ["connect", "sound_tokens", "context"])
def test_other_tokens_are_refused(part: str, setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    right = getattr(release_pipeline, part)

    def wrong(*args: object) -> torch.Tensor:
        out = right(*args).clone()
        out[0] += 1
        return out

    monkeypatch.setattr(release_pipeline, part, wrong)
    with pytest.raises(Refused, match=r"prompts differ by .*, allowed are 1e-04"):
        ways.check(setup)


@torch.inference_mode()
def test_other_cuts_are_refused(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways.release_compressor, "segment", lambda *_: [0, 1, 2])
    with pytest.raises(Refused, match=r"cuts differ: .* \[0, 1, 2\]"):
        ways.check(setup)


@torch.inference_mode()
def test_nothing_is_written_when_the_ways_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ways.release_compressor, "segment", lambda *_: [0, 1, 2])
    assert command.main([*COMMAND, "--out", str(tmp_path / "out")]) == command.REFUSED
    said = capsys.readouterr().err
    assert said.startswith("python -m bench pipeline: refused: cuts differ: ")
    assert not (tmp_path / "out").exists()


@torch.inference_mode()
def test_the_authors_way_is_cut_up_as_theirs(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames are resized one by one, sound goes in window by window, the rest at once."""
    encoder = setup.model.video_encoder
    assert encoder.beats is not None
    windows: list[tuple[int, ...]] = []
    handle = encoder.beats.register_forward_pre_hook(lambda _, x: windows.append(tuple(x[0].shape)))
    layer = encoder.connector.projector[2]
    projected: list[int] = []
    other = layer.register_forward_pre_hook(lambda _, x: projected.append(len(x[0])))
    images: list[int] = []
    right = release_pipeline.preprocess

    def counting(*args: object) -> torch.Tensor:
        images.append(1)
        return right(*args)

    monkeypatch.setattr(release_pipeline, "preprocess", counting)
    try:
        ways.release(setup, setup.decoded)
    finally:
        handle.remove()
        other.remove()
    assert windows == [(1, 160_000), (1, 32_000)]  # 12 seconds
    assert projected == [FRAMES] and len(images) == 2 * FRAMES


# ---------------------------------------------------------------- stages


@torch.inference_mode()
@pytest.mark.parametrize("name", ways.WAYS)
def test_stages_are_the_whole(name: str, setup: Setup) -> None:
    pipeline.staged(setup, ways.WAYS[name])
    run = pipeline.staged(setup, ways.WAYS[name])
    assert set(run.seconds) == {"decode video", "decode audio", *ENCODING, *ASKING}
    assert all(value >= 0 for value in run.seconds.values())
    # Two clocks: what runs before the first stage begins and after the last has ended is missing.
    assert sum(run.seconds.values()) == pytest.approx(run.first_token_s, rel=0.02, abs=2e-3)
    assert run.seconds[pipeline.OTHER] < 0.3 * run.first_token_s
    assert run.tokens_per_s > 0 and run.peak_bytes > 50 * 2**20


@torch.inference_mode()
def test_a_second_question_goes_through_no_tower(setup: Setup) -> None:
    features = ways.our_features(setup, setup.decoded)
    with measure() as times:
        ways.prefill(setup, ways.our_question(setup, features, pipeline_models.SECOND_QUESTION))
    assert set(times.seconds) == {"compressor", "prefill"}


def test_the_questions_have_thirty_tokens(setup: Setup) -> None:
    for question in (pipeline_models.QUESTION, pipeline_models.SECOND_QUESTION):
        asked = setup.ask(question)
        assert asked["question_ids"].shape == (1, 30)
        assert len(setup.processor.tokenizer(question).input_ids) == 30


# ---------------------------------------------------------------- models


@pytest.mark.parametrize(("llm", "billions"), [("qwen2-7b", 7.616), ("llama-3.2-3b", 3.213)])
def test_the_papers_sizes(llm: str, billions: float) -> None:
    config = pipeline_models.config("paper", llm)
    with torch.device("meta"):
        model = ways.TDCForConditionalGeneration(config)
    encoder = model.video_encoder

    def size(module: torch.nn.Module) -> float:
        return sum(p.numel() for p in module.parameters()) / 1e9

    assert size(model.language_model) == pytest.approx(billions, abs=1e-3)
    assert size(encoder.dinov2) == pytest.approx(1.136, abs=1e-3)  # DINOv2-giant
    assert size(encoder.siglip) == pytest.approx(0.413, abs=1e-3)  # the vision part
    assert size(encoder.beats) == pytest.approx(0.090, abs=1e-3)
    assert config.num_boundaries == 24 and config.scene_window == 8
    assert config.qformer_config.num_hidden_layers == 12


def test_weights_are_made_in_their_dtype() -> None:
    model, _ = pipeline_models.build("tiny", "llama-3.2-3b", "cpu", torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert torch.get_default_dtype() == torch.float32


def test_the_video_has_the_scenes_it_should() -> None:
    video = pipeline_models.video(40, 64, 5)
    change = (video.frames[1:].astype(int) - video.frames[:-1]).__abs__().mean((1, 2, 3))
    assert sorted(change)[-4] > 2 * sorted(change)[-5]
    assert video.waveform.shape == (40 * 16_000,) and abs(video.waveform).max() < 1


# ---------------------------------------------------------------- command

COMMAND = ["pipeline", "--scale", "tiny", "--threads", "1", "--rounds", "2"]


def parts(folder: Path) -> dict[str, dict]:
    (path,) = folder.iterdir()
    assert path.name == f"{machine.machine()}.json"
    ((name, entry),) = json.loads(path.read_text()).items()
    assert name == "pipeline tiny qwen2-7b cpu 12 float32"
    assert entry["environment"]["versions"]["torch"] == torch.__version__
    return {row["part"]: row for row in entry["rows"]}


def test_the_file_holds_what_was_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main([*COMMAND, "--out", str(tmp_path)]) == 0
    found = parts(tmp_path)
    first = "first token, from decoded frames"
    assert list(found) == [
        first,
        "first token of a second question, features kept",
        "first token, from resized frames on the device",
        "first token, from the file",
        "stages, ours",
        "stages, release",
        "LVCoT, N = 3",
    ]
    times = found[first]["times"]
    assert {t["rounds"] for t in times.values()} == {2}
    ratio = times["release"]["median_s"] / times["ours"]["median_s"]
    assert found[first]["ratios"] == {"release": pytest.approx(ratio, rel=1e-2)}
    for name in ("ours", "release"):
        row = found[f"stages, {name}"]
        assert sum(row["stages_s"].values()) == pytest.approx(row["first_token_s"], rel=0.05)
        assert "notes" not in row
    for row in found.values():
        assert row["question_tokens"] == 30 and row["prompt_error"] < 1e-5
    said = capsys.readouterr().out
    assert (
        f"{first}\n  provider " in said
        and "part stages, release, first token s " in said
        and ": 7 rows written to " in said
    )


def test_without_pyav_the_file_is_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline_models, "HAS_AV", False)
    command.main([*COMMAND, "--out", str(tmp_path)])
    found = parts(tmp_path)
    words = "not measured (PyAV is not installed)"
    assert found["first token, from the file"]["note"] == words
    assert "times" not in found["first token, from the file"]
    row = found["stages, ours"]
    assert row["notes"] == {"decode video": words} and "decode video" not in row["stages_s"]
    assert found["LVCoT, N = 3"]["times"]["ours"]["median_s"] > 0


def test_the_model_comes_without_pyav(monkeypatch: pytest.MonkeyPatch) -> None:
    """No module of tdc imports it when it is imported; reading a file says what is missing."""
    for path in (ROOT / "tdc").rglob("*.py"):
        assert not re.search(r"^(import|from) av\b", path.read_text(), re.MULTILINE), path
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ModuleNotFoundError, match="import of av"):
        pyav.open("README.md")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "--scale small: its numbers are no results, --out must be another folder"),
        (["--frames", "2", "--out", "x"], "--frames: expected at least 3"),
        (["--rounds", "0", "--out", "x"], "--rounds: expected at least 1, got 0"),
        (["--threads", "-1", "--out", "x"], "--threads: expected at least 1, got -1"),
        pytest.param(
            ["--device", "cuda"],
            "--device cuda: there is no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
    ],
)
def test_bad_arguments_are_one_line(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        command.main(["pipeline", *args])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1
    assert said.startswith(f"python -m bench pipeline: {message}")

# SPDX-License-Identifier: Apache-2.0
"""``tdc segment``: by colour, by a plain DINOv2, by a model's DINOv2."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from clips import pans, write_clip, write_frames
from PIL import Image
from safetensors.torch import load_file, save_file

from tdc.encoder.color_features import THRESHOLD

# --- by the DINOv2 of a model --------------------------------------------------------------------


def test_json_is_all_of_stdout(tdc, tmp_path, model_dir):
    from tiny import world

    truth = world.make_clip(0, 0, scenes=3)
    path = world.write_clip(tmp_path / "v.mp4", truth)
    done = tdc("segment", path, "--scenes", 3, "--fps", 2, "--json", "--model", model_dir)
    assert (done.code, done.err) == (0, "")
    found = json.loads(done.out)
    seconds, count = truth.num_frames, 2 * truth.num_frames
    assert (found["features"], found["model"], found["threshold"]) == (
        "model",
        str(model_dir),
        None,
    )
    assert found["video"] == str(path) and found["duration"] == pytest.approx(seconds, abs=0.1)
    assert found["frame_times"] == [i / 2 for i in range(count)]
    assert len(found["similarity"]) == count - 1
    scenes = found["scenes"]
    # Even untrained features see hard cuts between backgrounds; samples fall on the cuts.
    assert [scene["start"] for scene in scenes] == list(truth.starts)
    assert [scene["number"] for scene in scenes] == [1, 2, 3]
    assert [scene["end"] for scene in scenes[:-1]] == [scene["start"] for scene in scenes[1:]]
    assert sum(scene["frames"] for scene in scenes) == count
    assert scenes[0]["similarity"] is None
    for scene in scenes[1:]:
        assert scene["similarity"] == found["similarity"][scene["first_frame"] - 1]


def test_table_and_plot(tdc, clip, model_dir, tmp_path):
    plot = tmp_path / "scenes.png"
    done = tdc("segment", clip, "--scenes", 2, "--model", model_dir, "--plot", plot)
    assert done.code == 0 and done.err == f"timeline: {plot}\n"
    head, _, columns, _, first, second = done.out.splitlines()
    assert head == f"{clip}: 2 scenes, 4 frames, 4.0 s"
    assert columns.split("  ")[0].strip() == "scene" and "similarity" in columns
    assert first.split()[:3] == ["1", "0:00.0", second.split()[1]]
    assert second.split()[2] == "0:04.0" and -1 <= float(second.split()[4]) <= 1
    with Image.open(plot) as picture:
        assert picture.format == "PNG"


def test_threshold_cuts_nowhere_when_it_is_low(tdc, clip, model_dir):
    done = tdc("segment", clip, "--threshold", -1, "--json", "--model", model_dir)
    assert len(json.loads(done.out)["scenes"]) == 1


def test_features_model_without_one_is_the_tiny_one_which_finds_the_cuts_and_says_so(tdc, tmp_path):
    from tiny import world

    truth = world.make_clip(2, 1, split="test", scenes=4)
    path = world.write_clip(tmp_path / "v.mp4", truth)
    done = tdc("segment", path, "--features", "model", "--json")
    assert done.err.startswith("note: no --model given: the tiny TDC")
    found = json.loads(done.out)
    assert [scene["start"] for scene in found["scenes"]] == list(truth.starts)
    assert found["features"] == "model" and found["threshold"] == 0.6845
    assert Path(found["model"]).parts[-2:] == ("assets", "tiny")


def test_loads_the_tower_of_the_whole_model(tdc, model_dir):
    """The tower read on its own equals the one inside the loaded model."""
    from tdc.checkpoints.load import load_dinov2, load_model

    alone, config = load_dinov2(model_dir)
    within = load_model(model_dir).model
    pixels = torch.randint(0, 256, (2, 3, 56, 56), dtype=torch.uint8)
    assert config.tower_grid == 4
    with torch.no_grad():
        assert torch.equal(alone(pixels), within.video_encoder.dinov2(pixels))


# --- by colour -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> tuple[Path, list[float]]:
    """Four places that the camera pans over, and when it gets to each of them."""
    path = tmp_path_factory.mktemp("drawn") / "v.mp4"
    return write_frames(path, pans(30, 20, 40, 30), fps=10), [0, 3, 5, 9]


def found(done) -> dict:
    assert (done.code, done.err) == (0, ""), done
    return json.loads(done.out)


def starts(document: dict) -> list[float]:
    return [scene["start"] for scene in document["scenes"]]


def test_color_is_the_default_and_finds_the_cuts(tdc, drawn):
    path, truth = drawn
    result = found(tdc("segment", path, "--json"))
    assert starts(result) == truth
    named = (result["features"], result["model"], result["threshold"])
    assert named == ("color", None, THRESHOLD)
    assert result["frame_times"][:3] == [0, 0.25, 0.5]
    assert found(tdc("segment", path, "--json", "--features", "color")) == result


def test_color_loads_no_transformers(drawn):
    code = (
        "import sys; from tdc.cli.main import main; main(['segment', sys.argv[1]]);"
        "print({'transformers', 'tdc.encoder.towers'} & set(sys.modules))"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(drawn[0])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.endswith("set()\n"), done


def test_color_has_no_most_number_of_scenes(tdc, tmp_path):
    path = write_clip(tmp_path / "v.mp4", frames=40, fps=1, gop=1)
    every = found(tdc("segment", path, "--fps", 1, "--threshold", 1, "--json"))
    assert len(every["scenes"]) == 40 and every["threshold"] == 1


def test_color_cuts_a_place_once(tdc, tmp_path):
    """Every frame is unlike the next one; a scene has at least 0.6 s all the same."""
    path = write_clip(tmp_path / "v.mp4", frames=40, fps=10, gop=1)
    result = found(tdc("segment", path, "--fps", 10, "--threshold", 1, "--json"))
    first = [scene["first_frame"] for scene in result["scenes"]]
    assert len(first) > 3 and all(b - a >= 6 for a, b in pairwise(first[1:]))


def test_scenes_alone_is_a_number_with_a_threshold_a_limit(tdc, drawn):
    path, truth = drawn
    more = len(truth) + 2
    alone = found(tdc("segment", path, "--scenes", more, "--json"))
    assert len(alone["scenes"]) == more and alone["threshold"] is None
    assert set(truth) < set(starts(alone))
    both = found(tdc("segment", path, "--scenes", more, "--threshold", THRESHOLD, "--json"))
    assert starts(both) == truth
    fewer = found(tdc("segment", path, "--scenes", 2, "--threshold", THRESHOLD, "--json"))
    assert len(fewer["scenes"]) == 2 and fewer["scenes"][1]["start"] in truth


@pytest.mark.parametrize("chunk", [5, 16])
def test_color_reads_a_long_video_in_chunks(tdc, clip, tmp_path, monkeypatch, chunk):
    whole = found(tdc("segment", clip, "--json"))
    assert len(whole["frame_times"]) == 16
    monkeypatch.setattr("tdc.cli.segment._CHUNK", chunk)
    parts = found(tdc("segment", clip, "--json"))
    assert parts == whole
    plot = tmp_path / "p.png"
    assert tdc("segment", clip, "--threshold", 1, "--plot", plot).err == f"timeline: {plot}\n"
    with Image.open(plot) as picture:
        assert picture.format == "PNG"


def test_color_with_fewer_frames_says_so(tdc, clip):
    done = tdc("segment", clip, "--max-frames", 5, "--json")
    assert done.code == 0 and done.err == (
        "warning: the video has 16 frames at 4 per second; "
        "--max-frames takes 5 evenly spaced ones\n"
    )
    assert json.loads(done.out)["frame_times"] == pytest.approx([0, 0.8, 1.6, 2.4, 3.2], abs=0.02)
    assert len(found(tdc("segment", clip, "--max-frames", 16, "--json"))["frame_times"]) == 16


# --- by a plain DINOv2 ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory) -> dict[str, Path]:
    """The same weights as transformers saves them, without and with a head."""
    from transformers import Dinov2Config, Dinov2ForImageClassification

    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=56, patch_size=14
    )
    model = Dinov2ForImageClassification(config)
    folder = tmp_path_factory.mktemp("dinov2")
    model.save_pretrained(folder / "head")
    model.dinov2.save_pretrained(folder / "plain")
    return {"plain": folder / "plain", "head": folder / "head"}


def test_a_plain_dinov2_with_or_without_a_head(tdc, drawn, dinov2):
    from tdc.encoder.segment import segment
    from tdc.encoder.towers import VisionTower
    from tdc.media.pixels import padding_color, resize_frames
    from tdc.media.video import read_video

    results = {
        name: found(tdc("segment", drawn[0], "--dinov2", folder, "--json"))
        for name, folder in dinov2.items()
    }
    plain, head = results["plain"], results["head"]
    assert (plain.pop("model"), head.pop("model")) == (str(dinov2["plain"]), str(dinov2["head"]))
    assert plain == head
    assert (plain["features"], plain["threshold"]) == ("dinov2", None)
    tower = VisionTower.from_pretrained(dinov2["plain"])
    with torch.no_grad():
        frames = read_video(drawn[0]).frames
        fill = padding_color(tower.image_mean)
        features = tower(resize_frames(frames, tower.image_size, fill))
    expected = segment(features, 24)  # the paper's number
    assert plain["similarity"] == pytest.approx(expected.similarity.tolist(), abs=1e-5)
    assert [s["first_frame"] for s in plain["scenes"]] == expected.scene_starts()


def test_a_dinov2_by_its_name_on_the_hub(tdc, clip, dinov2, monkeypatch):
    from transformers import AutoConfig, Dinov2Config, Dinov2Model

    def redirect(kind):
        original = kind.from_pretrained.__func__

        def load(cls, name, *args, **kwargs):
            folder = dinov2["plain"] if name == "some/dinov2" else name
            return original(cls, folder, *args, **kwargs)

        monkeypatch.setattr(kind, "from_pretrained", classmethod(load))

    for kind in (AutoConfig, Dinov2Config, Dinov2Model):
        redirect(kind)
    result = found(tdc("segment", clip, "--dinov2", "some/dinov2", "--json"))
    assert result["model"] == "some/dinov2" and len(result["scenes"]) == 4


def test_a_hub_that_cannot_be_reached(tdc, clip, monkeypatch):
    def gone(*_, **__):
        raise OSError("We couldn't connect to the hub\nto load the files")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", gone)
    line = tdc("segment", clip, "--dinov2", "some/dinov2").refused()
    assert line.startswith("tdc: no such folder: some/dinov2, nor can a model of this name be had")


def test_folders_that_hold_no_dinov2(tdc, clip, tmp_path, model_dir, dinov2):
    def refusal(folder):
        return tdc("segment", clip, "--dinov2", folder).refused()

    assert f"no such folder: {tmp_path / 'x y'}" in refusal(tmp_path / "x y")
    assert "is no DINOv2: it holds no config.json" in refusal(tmp_path)
    line = refusal(model_dir)
    assert "holds a model of type 'tdc'; expected 'dinov2'; a TDC model goes with --model" in line
    (tmp_path / "config.json").write_text((dinov2["plain"] / "config.json").read_text())
    state = load_file(dinov2["plain"] / "model.safetensors")
    del state["layernorm.weight"]
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    assert "missing 1: layernorm.weight" in refusal(tmp_path)


# --- options that contradict each other ----------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model", "m", "--dinov2", "d"], "--model and --dinov2 both name a DINOv2"),
        (["--features", "color", "--model", "m"], "--features color does not use --model"),
        (["--features", "model", "--dinov2", "d"], "--features model does not use --dinov2"),
        (["--features", "dinov2", "--model", "m"], "--features dinov2 does not use --model"),
        (["--features", "dinov2"], "--features dinov2: expected --dinov2 FOLDER_OR_HUB_NAME"),
        (["--device", "cpu"], "--device: colour is measured without a model"),
        (["--features", "color", "--dtype", "bf16"], "--dtype: colour is measured without"),
    ],
)
def test_contradictions(tdc, clip, arguments, says):
    assert says in tdc("segment", clip, *arguments).refused()

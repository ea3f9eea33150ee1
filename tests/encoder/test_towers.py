# SPDX-License-Identifier: Apache-2.0
"""Both towers against recordings, the cut before SigLIP's last norm, and the pixels that go in."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    Dinov2Config,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from tdc.encoder.towers import VisionTower, resize_token_grid
from tdc.errors import InputError
from tdc.media.pixels import normalize_pixels, padding_color, preprocess_frames, resize_frames

DATA = Path(__file__).parents[1] / "parity" / "data"
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 56,
    "patch_size": 14,
}


@pytest.fixture(scope="module")
def recorded():
    return np.load(DATA / "towers.npz")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """The recorded towers as checkpoint folders, under the names of published checkpoints."""
    configs = json.loads((DATA / "towers_config.json").read_text())
    state = load_file(DATA / "state_towers.safetensors")
    folders = {}
    for name, config in configs.items():
        folder = tmp_path_factory.mktemp(name)
        own = {k.removeprefix(name + "."): v for k, v in state.items() if k.startswith(name + ".")}
        save_file(own, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(config))
        folders[name] = folder
    return folders


def small(family="siglip", **kwargs):
    torch.manual_seed(0)
    config = SiglipVisionConfig(**SMALL) if family == "siglip" else Dinov2Config(**SMALL)
    return VisionTower(config, token_grid=3, image_size=56, **kwargs).eval()


@pytest.mark.parametrize(("name", "size"), [("siglip", 384), ("dino", 378)])
def test_tokens_are_the_recorded_ones(recorded, checkpoints, name, size):
    tower = VisionTower.from_pretrained(checkpoints[name])
    assert (tower.image_size, tower.num_tokens, tower.hidden_size) == (size, 576, 32)
    pixels = torch.from_numpy(recorded[f"pix_{name}"]).float()
    with torch.no_grad():
        tokens = tower(pixels)
        raw = tower.model(pixels).last_hidden_state
    assert tokens.shape == (1, 576, 32)
    np.testing.assert_allclose(tokens[:, ::3], recorded[f"feat_{name}_tok3"], atol=1e-5)
    key = "raw_siglip_hidden_last_tok5" if name == "siglip" else "raw_dino_last_tok5"
    np.testing.assert_allclose(raw[:, ::5], recorded[key], atol=1e-5)


def test_siglip_stops_before_its_last_norm(recorded, checkpoints):
    """Also what ``hidden_states[-1]`` of the installed transformers is."""
    pixels = torch.from_numpy(recorded["pix_siglip"]).float()
    published = SiglipVisionModel.from_pretrained(checkpoints["siglip"]).eval()
    with torch.no_grad():
        ours = VisionTower.from_pretrained(checkpoints["siglip"]).model(pixels).last_hidden_state
        theirs = published(pixels, output_hidden_states=True)
        skipped = published.encoder(published.embeddings(pixels)).last_hidden_state
    assert torch.equal(ours, skipped)
    assert torch.equal(theirs.hidden_states[-1], skipped)
    assert (theirs.last_hidden_state - skipped).abs().max() > 0.1
    torch.testing.assert_close(published.post_layernorm(skipped), theirs.last_hidden_state)


def test_siglip_has_no_weights_it_does_not_use():
    names = [name for name, _ in small().named_parameters()]
    assert not any("post_layernorm" in name or "head." in name for name in names)


def test_whole_siglip_checkpoint_gives_its_vision_part(tmp_path, caplog):
    torch.manual_seed(0)
    text = {"vocab_size": 30, "hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "max_position_embeddings": 8, "projection_size": 16}
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=SMALL)).eval()
    model.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, logger="transformers"):
        tower = VisionTower.from_pretrained(tmp_path, token_grid=4)
    pixels = torch.randn(1, 3, 56, 56)
    with torch.no_grad():
        expected = model.vision_model(pixels, output_hidden_states=True).hidden_states[-1]
        torch.testing.assert_close(tower(pixels), expected)
    reports = [r.getMessage() for r in caplog.records if "config" not in r.name]
    assert not reports  # nothing missing, nothing unexpected


def test_dinov2_leaves_out_the_class_token():
    tower = small("dinov2")
    tower.token_grid = 4  # the patch grid itself: no resize
    pixels = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        torch.testing.assert_close(tower(pixels), tower.model(pixels).last_hidden_state[:, 1:])


def test_dinov2_default_size_gives_27_patches():
    with torch.device("meta"):
        tower = VisionTower(Dinov2Config(**(SMALL | {"image_size": 518})))
    assert tower.image_size == 378


@pytest.mark.parametrize("family", ["siglip", "dinov2"])
def test_positions_are_interpolated_for_another_size(family):
    config = SiglipVisionConfig(**SMALL) if family == "siglip" else Dinov2Config(**SMALL)
    tower = VisionTower(config, token_grid=3, image_size=84).eval()
    with torch.no_grad():
        assert tower(torch.randn(1, 3, 84, 84)).shape == (1, 9, 16)


@pytest.mark.parametrize("family", ["siglip", "dinov2"])
def test_chunks_change_nothing(family):
    tower = small(family)
    pixels = torch.randn(5, 3, 56, 56)
    with torch.no_grad():
        whole, chunked = tower(pixels), tower(pixels, chunk_size=2)
        assert tower(pixels[:0]).shape == (0, 9, 16)
    assert whole.shape == (5, 9, 16)
    torch.testing.assert_close(chunked, whole, atol=1e-5, rtol=1e-5)


def test_uint8_pixels_are_normalised_on_the_way():
    tower = small("dinov2")
    pixels = torch.randint(0, 256, (3, 3, 56, 56), dtype=torch.uint8)
    with torch.no_grad():
        expected = tower(normalize_pixels(pixels, tower.image_mean, tower.image_std))
        torch.testing.assert_close(tower(pixels, chunk_size=2), expected, atol=1e-5, rtol=1e-5)


def test_token_grid_is_resized_in_fp32_and_cast_back():
    tokens = torch.randn(2, 27 * 27, 8).bfloat16()
    resized = resize_token_grid(tokens, (27, 27), 24)
    assert resized.dtype == torch.bfloat16
    # Centre of cell 0 of 24 lies at 0.5 * 27 / 24 - 0.5 = 0.0625 of the old grid.
    a, b, c, d = (tokens[0, i].float() for i in (0, 1, 27, 28))
    f = 0.0625
    expected = (1 - f) * ((1 - f) * a + f * b) + f * ((1 - f) * c + f * d)
    assert torch.equal(resized[0, 0], expected.bfloat16())


def test_half_precision_in_and_out():
    tower = small("dinov2").bfloat16()
    with torch.no_grad():
        assert tower(torch.randn(1, 3, 56, 56)).dtype == torch.bfloat16


def test_other_families_are_refused(tmp_path):
    with pytest.raises(InputError, match="needs a SigLIP or DINOv2 config, got BertConfig"):
        VisionTower(BertConfig())
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="got BertConfig"):
        VisionTower.from_pretrained(tmp_path)


# --- preprocessing ---


@pytest.mark.parametrize("family", ["siglip", "dinov2"])
@pytest.mark.parametrize(("height", "width"), [(60, 100), (100, 60), (64, 64), (40, 30)])
def test_pixels_are_those_of_the_published_processors(family, height, width):
    tower = small(family)
    size = {"height": 56, "width": 56}
    if family == "siglip":
        processor = SiglipImageProcessorPil(size=size)
    else:
        mean, std = list(tower.image_mean), list(tower.image_std)
        processor = BitImageProcessorPil(
            size=size, do_center_crop=False, image_mean=mean, image_std=std
        )
    frames = np.random.default_rng(0).integers(0, 256, (3, height, width, 3), dtype=np.uint8)
    side = max(height, width)
    fill = [int(255 * channel) for channel in tower.image_mean]
    square = np.full((3, side, side, 3), fill, dtype=np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[:, top : top + height, left : left + width] = frames
    expected = processor(list(square), return_tensors="pt")["pixel_values"]
    pixels = preprocess_frames(frames, tower.image_size, tower.image_mean, tower.image_std)
    assert pixels.dtype == torch.float32 and pixels.shape == (3, 3, 56, 56)
    torch.testing.assert_close(pixels, expected, atol=1e-5, rtol=0)


def test_published_processors_mean_colours():
    assert padding_color(small("siglip").image_mean) == (127, 127, 127)
    assert padding_color(small("dinov2").image_mean) == (123, 116, 103)


def test_frames_keep_their_order():
    frames = np.repeat(np.arange(40, dtype=np.uint8), 30 * 20 * 3).reshape(40, 30, 20, 3)
    resized = resize_frames(frames, 16, (0, 0, 0))
    assert resized.shape == (40, 3, 16, 16) and resized.dtype == torch.uint8
    assert resized[:, 0, 8, 8].tolist() == list(range(40))
    assert resized[:, :, :, 0].max() == 0  # the padding of a portrait lies left and right


def test_no_frames_and_a_mapped_range():
    assert resize_frames(np.zeros((0, 4, 4, 3), np.uint8), 8, (0, 0, 0)).shape == (0, 3, 8, 8)
    white = np.full((1, 8, 8, 3), 255, np.uint8)
    assert preprocess_frames(white, 8, (0.5,) * 3, (0.25,) * 3).unique().tolist() == [2.0]


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((1, 4, 4, 3), np.float32),
        np.zeros((4, 4, 3), np.uint8),
        np.zeros((1, 0, 4, 3), "u1"),
    ],
)
def test_other_arrays_are_refused(frames):
    with pytest.raises(InputError, match=r"frames must be uint8 \[T, H, W, 3\], got"):
        resize_frames(frames, 8, (0, 0, 0))

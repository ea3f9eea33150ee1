# SPDX-License-Identifier: Apache-2.0
"""Filter bank and BEATs against recordings, a plain re-computation and broken checkpoints."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tdc.encoder.beats import (
    FBANK_MEAN,
    FBANK_STD,
    BEATs,
    BEATsConfig,
    beats_state_dict,
    relative_position_bucket,
)
from tdc.encoder.fbank import kaldi_fbank
from tdc.errors import InputError

DATA = Path(__file__).parents[1] / "parity" / "data"
TINY = {
    "embed_dim": 8,
    "encoder_layers": 2,
    "encoder_embed_dim": 16,
    "encoder_ffn_embed_dim": 24,
    "encoder_attention_heads": 2,
    "conv_pos": 4,
    "conv_pos_groups": 2,
    "num_buckets": 8,
    "max_distance": 16,
}


@pytest.fixture(scope="module")
def recorded():
    return np.load(DATA / "beats64.npz")


@pytest.fixture(scope="module")
def wave():
    return torch.from_numpy(np.load(DATA / "wav.npz")["wav"]).float()


@pytest.fixture(scope="module")
def beats():
    config = BEATsConfig.from_dict(json.loads((DATA / "beats64_config.json").read_text()))
    model = BEATs(config).eval()
    model.load_state_dict(beats_state_dict(load_file(DATA / "state_beats64.safetensors")))
    return model


def tiny(**changes):
    torch.manual_seed(0)
    return BEATs(BEATsConfig.from_dict(TINY | changes)).eval()


# --- filter bank ---


@pytest.mark.parametrize("clip", range(4))
def test_fbank_is_the_recorded_one(recorded, wave, clip):
    start, stop = recorded[f"range_{clip}"]
    fbank = kaldi_fbank(wave[start:stop])
    assert fbank.shape == (int(recorded[f"fbank_frames_{clip}"]), 128)
    scaled = (fbank[::9].numpy() - FBANK_MEAN) / (2 * FBANK_STD)
    np.testing.assert_allclose(scaled, recorded[f"fbank_{clip}_stride9"][0], atol=5e-5)


def test_fbank_matches_the_formulas():
    """One frame, one filter at a time, in fp64."""
    signal = np.random.default_rng(0).uniform(-0.5, 0.5, 900)
    fbank = kaldi_fbank(torch.from_numpy(signal).float())
    assert fbank.shape == (4, 128)
    frame = signal[320:720].astype(np.float32).astype(np.float64) * 32768
    frame = frame - frame.mean()
    frame = np.array([frame[i] - 0.97 * frame[max(i - 1, 0)] for i in range(400)])
    frame *= np.array([(0.5 - 0.5 * math.cos(2 * math.pi * i / 399)) ** 0.85 for i in range(400)])
    turns = np.outer(np.arange(257), np.arange(400)) / 512
    power = (frame * np.cos(2 * np.pi * turns)).sum(1) ** 2
    power += (frame * np.sin(2 * np.pi * turns)).sum(1) ** 2

    def mel(hertz):
        return 1127 * math.log(1 + hertz / 700)

    step = (mel(8000) - mel(20)) / 129
    for j in (5, 60, 127):
        left = mel(20) + j * step
        weights = [
            max(0.0, min((mel(k * 31.25) - left) / step, (left + 2 * step - mel(k * 31.25)) / step))
            for k in range(257)
        ]
        assert fbank[2, j].item() == pytest.approx(math.log(np.dot(weights, power)), abs=1e-5)


def test_fbank_of_silence_is_the_floor():
    fbank = kaldi_fbank(torch.zeros(2, 1600))
    assert fbank.shape == (2, 8, 128)
    np.testing.assert_allclose(fbank, math.log(np.finfo(np.float32).eps), rtol=1e-6)


@pytest.mark.parametrize(
    ("samples", "frames"), [(0, 0), (399, 0), (400, 1), (559, 1), (560, 2), (160_000, 998)]
)
def test_number_of_frames(samples, frames):
    assert kaldi_fbank(torch.zeros(samples)).shape == (frames, 128)


def test_fbank_stays_exact_under_autocast(wave):
    exact = kaldi_fbank(wave[:4000])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(kaldi_fbank(wave[:4000]), exact)


# --- encoder ---


@pytest.mark.parametrize("clip", range(4))
def test_tokens_are_the_recorded_ones(recorded, wave, beats, clip):
    start, stop = recorded[f"range_{clip}"]
    with torch.no_grad():
        tokens, padding = beats(wave[start:stop][None])
    assert padding is None
    np.testing.assert_allclose(tokens, recorded[f"out_{clip}"], atol=2e-4)


def test_padded_batch_is_the_recorded_one(recorded, wave, beats):
    second = torch.cat([wave[48_000:80_000], torch.zeros(16_000)])
    with torch.no_grad():
        tokens, padding = beats(
            torch.stack([wave[:48_000], second]), torch.tensor([48_000, 32_000])
        )
    assert np.array_equal(padding, recorded["masked_pm"])
    np.testing.assert_allclose(tokens, recorded["masked_out"], atol=2e-4)


def test_padding_is_not_heard():
    """What stands behind a row's length changes nothing but what Microsoft's rule lets through."""
    beats = tiny(conv_pos=2)
    wave = torch.randn(1, 48_000, generator=torch.Generator().manual_seed(0)) * 0.1
    noisy = wave.clone()
    noisy[:, 40_000:] = 0.3
    with torch.no_grad():
        first, padding = beats(wave, torch.tensor([32_000]))
        second, _ = beats(noisy, torch.tensor([32_000]))
        plain, _ = beats(noisy)
    valid = ~padding[0]
    assert 0 < valid.sum() < valid.numel()
    torch.testing.assert_close(first[0, valid], second[0, valid])
    assert (plain[0, valid] - second[0, valid]).abs().max() > 1e-3


def test_rows_of_a_batch_are_independent(wave, beats):
    windows = wave[:96_000].reshape(3, 32_000)
    with torch.no_grad():
        together, _ = beats(windows)
        alone, _ = beats(windows[1:2])
    torch.testing.assert_close(together[1:2], alone, atol=1e-4, rtol=1e-4)


def test_half_precision_stays_close(wave):
    beats = tiny()
    with torch.no_grad():
        exact, _ = beats(wave[None, :16_000])
        rounded, _ = beats.bfloat16()(wave[None, :16_000])
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).abs().mean() < 0.02 * exact.abs().max()


def test_gradients_reach_every_parameter(wave):
    beats = tiny()
    beats(wave[None, :16_000])[0].square().sum().backward()
    for name, parameter in beats.named_parameters():
        if not name.endswith("k_proj.bias"):  # shifts all scores of a query alike
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(("buckets", "farthest"), [(320, 800), (8, 16)])
def test_buckets_match_the_rule(buckets, farthest):
    distance = torch.arange(-1000, 1001)
    ours = relative_position_bucket(distance, buckets, farthest)
    half, exact = buckets // 2, buckets // 4
    for d, bucket in zip(distance.tolist(), ours.tolist(), strict=True):
        near = abs(d)
        if near >= exact:
            share = np.float32(math.log(near / exact) / math.log(farthest / exact))
            near = min(exact + int(share * (half - exact)), half - 1)
        assert bucket == near + (half if d > 0 else 0), d


def test_too_short_or_misshapen_is_refused():
    beats = tiny()
    assert beats(torch.zeros(1, 2800))[0].shape == (1, 8, 16)
    with pytest.raises(InputError, match=r"n >= 2800 samples, got \[1, 2799\]"):
        beats(torch.zeros(1, 2799))
    with pytest.raises(InputError, match=r"waveform must be \[B, n\].*got \[16000\]"):
        beats(torch.zeros(16_000))


# --- checkpoints ---


def published(model, **cfg):
    """What Microsoft's file of a fine-tuned model holds: old weight norm, shared table, head."""
    state = {}
    for name, tensor in model.state_dict().items():
        name = name.replace("parametrizations.weight.original0", "weight_g")
        state[name.replace("parametrizations.weight.original1", "weight_v")] = tensor
    table = state["encoder.layers.0.self_attn.relative_attention_bias.weight"]
    state["encoder.layers.1.self_attn.relative_attention_bias.weight"] = table
    state |= {"predictor.weight": torch.zeros(7, 16), "predictor.bias": torch.zeros(7)}
    ignored = {"finetuned_model": True, "predictor_class": 7, "encoder_layerdrop": 0.05}
    return {"cfg": TINY | ignored | cfg, "model": state, "label_dict": {0: "dog"}}


def test_published_checkpoint_loads(tmp_path, wave):
    model = tiny()
    torch.save(published(model), tmp_path / "beats.pt")
    loaded = BEATs.from_checkpoint(tmp_path / "beats.pt")
    assert not loaded.training and loaded.hidden_size == 16
    with torch.no_grad():
        assert torch.equal(loaded(wave[None, :8000])[0], model(wave[None, :8000])[0])


def test_half_checkpoint_is_run_in_fp32(tmp_path):
    checkpoint = published(tiny())
    checkpoint["model"] = {name: tensor.half() for name, tensor in checkpoint["model"].items()}
    torch.save(checkpoint, tmp_path / "beats.pt")
    assert next(BEATs.from_checkpoint(tmp_path / "beats.pt").parameters()).dtype == torch.float32


def test_bad_checkpoints_get_one_line(tmp_path):
    path = tmp_path / "beats.pt"
    with pytest.raises(InputError, match=r"no such BEATs checkpoint: .*beats\.pt"):
        BEATs.from_checkpoint(path)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match="is not a PyTorch checkpoint"):
        BEATs.from_checkpoint(path)
    torch.save({"model": {}}, path)
    with pytest.raises(InputError, match='expected entries "cfg" and "model"'):
        BEATs.from_checkpoint(path)
    checkpoint = published(tiny())
    del checkpoint["model"]["layer_norm.bias"]
    checkpoint["model"]["encoder.layers.1.fc1.weight"] = torch.zeros(3, 16)
    checkpoint["model"]["stray"] = torch.zeros(1)
    torch.save(checkpoint, path)
    with pytest.raises(InputError) as caught:
        BEATs.from_checkpoint(path)
    message = str(caught.value)
    assert "layer_norm.bias is missing" in message and "stray is unknown" in message
    assert "encoder.layers.1.fc1.weight is [3, 16], expected [24, 16]" in message
    assert "\n" not in message


def test_other_variants_are_refused():
    with pytest.raises(InputError, match="layer_norm_first=True; only False is supported"):
        BEATsConfig.from_dict({"layer_norm_first": True})


def test_default_config_is_the_published_encoder():
    with torch.device("meta"):
        count = sum(p.numel() for p in BEATs(BEATsConfig()).parameters())
    assert 90.0e6 < count < 90.5e6  # 90 M in the BEATs paper

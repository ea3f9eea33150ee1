# SPDX-License-Identifier: Apache-2.0
"""Sound to frames: exact times, the released slicing, silence and odd lengths.

The encoder of most tests writes down what it heard: the waveform is a clock (sample = its time in
seconds), and a token holds the start of its time step and its patch number.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tdc.encoder.audio_tokens import audio_tokens, pool_tokens
from tdc.encoder.beats import BEATs, BEATsConfig
from tdc.errors import InputError


class Clock(nn.Module):
    """Stands in for BEATs: 8 tokens ``[time, patch]`` every 160 ms, as many as BEATs makes."""

    hidden_size = 2

    def __init__(self):
        super().__init__()
        self.config = BEATsConfig()
        self.scale = nn.Parameter(torch.ones(()))
        self.batches = []

    def forward(self, waveform, lengths=None):
        self.batches.append(tuple(waveform.shape))
        steps = (1 + (waveform.shape[1] - 400) // 160) // 16
        time = waveform[:, : steps * 2560 : 2560].repeat_interleave(8, dim=1)
        patch = torch.arange(8.0).repeat(steps).expand(len(waveform), -1)
        return torch.stack([time, patch], dim=-1) * self.scale, None


def clock_wave(seconds):
    return torch.arange(int(seconds * 16_000), dtype=torch.float64).div(16_000).float()


def run(waveform, **kwargs):
    clock = Clock()
    with torch.no_grad():
        tokens, lengths = audio_tokens(clock, waveform, **kwargs)
    return tokens, lengths, clock


def pooled(rows, count=50):
    rows = torch.tensor(np.asarray(rows, dtype=np.float64))
    return nn.functional.adaptive_avg_pool1d(rows.T, count).T.numpy()


def step_rows(first, last, base=0.0):
    return [[base + 0.16 * step, patch] for step in range(first, last) for patch in range(8)]


# --- by exact time ---


def test_a_second_is_the_time_steps_it_touches():
    tokens, lengths, _ = run(clock_wave(20), timestamps=[0, 3, 4, 13, 14], end=15)
    assert tokens.shape == (5, 50, 2) and lengths.tolist() == [50] * 5
    np.testing.assert_allclose(tokens[1], pooled(step_rows(18, 25)), atol=1e-4)  # 18.75 .. 25
    np.testing.assert_allclose(tokens[3], pooled(step_rows(18, 25, base=10)), atol=1e-4)


def test_a_frame_hears_until_the_next_frame_across_windows():
    tokens, _, _ = run(clock_wave(30), timestamps=[0, 8.0, 21.0], end=22)
    rows = step_rows(50, 62) + step_rows(0, 62, base=10) + step_rows(0, 7, base=20)
    np.testing.assert_allclose(tokens[1], pooled(rows), atol=1e-4)


def test_end_of_a_window_belongs_to_its_last_step():
    tokens, lengths, _ = run(clock_wave(20), timestamps=[9.94, 9.98], end=10)
    np.testing.assert_allclose(tokens[0], pooled(step_rows(61, 62)), atol=1e-4)
    np.testing.assert_allclose(tokens[1], pooled(step_rows(61, 62)), atol=1e-4)
    assert lengths.tolist() == [50, 50]


def test_last_frame_lasts_as_long_as_the_one_before():
    with_end, _, _ = run(clock_wave(20), timestamps=[0, 2, 4], end=6)
    without, _, _ = run(clock_wave(20), timestamps=[0, 2, 4])
    assert torch.equal(with_end, without)
    single, _, _ = run(clock_wave(5), timestamps=[0.0])
    np.testing.assert_allclose(single[0], pooled(step_rows(0, 31)), atol=1e-4)  # all of it


def test_kept_seconds_in_place_of_timestamps():
    taken = [1, 0, 0, 1, 1, 0]
    by_seconds, lengths, _ = run(clock_wave(20), taken=taken)
    by_times, _, _ = run(clock_wave(20), timestamps=[0, 3, 4], end=6)
    assert torch.equal(by_seconds, by_times) and len(lengths) == 3


def test_frames_after_the_sound_are_absent():
    tokens, lengths, _ = run(clock_wave(3.5), timestamps=range(6))
    assert lengths.tolist() == [50, 50, 50, 50, 0, 0]
    assert tokens[4:].abs().max() == 0
    np.testing.assert_allclose(tokens[3], pooled(step_rows(18, 21)), atol=1e-4)  # all that is left


@pytest.mark.parametrize("seconds", [0.001, 0.2, 0.7])
def test_less_than_a_second_is_padded_and_absent_behind_it(seconds):
    _, lengths, clock = run(clock_wave(seconds), timestamps=[0, 1, 2])
    assert lengths.tolist() == [50, 0, 0]
    assert clock.batches == [(1, 16_000)]


def test_a_short_rest_goes_with_the_window_before():
    tokens, lengths, clock = run(clock_wave(20.3), timestamps=range(21))
    assert sorted(clock.batches) == [(1, 160_000), (1, 164_800)]
    assert lengths.tolist() == [50] * 21
    # 10.3 s give 64 steps; second 20 is second 10 of its window: steps 62 and 63.
    np.testing.assert_allclose(tokens[20], pooled(step_rows(62, 64, base=10)), atol=1e-4)
    _, _, clock = run(clock_wave(21.3), timestamps=range(22))
    assert sorted(clock.batches) == [(1, 20_800), (2, 160_000)]


def test_only_needed_windows_are_encoded():
    _, _, clock = run(clock_wave(60), timestamps=[20, 21], end=22)
    assert clock.batches == [(1, 160_000)]


def test_windows_share_calls():
    together, _, clock = run(clock_wave(50), timestamps=range(50), chunk_size=3)
    assert clock.batches == [(3, 160_000), (2, 160_000)]
    alone, _, _ = run(clock_wave(50), timestamps=range(50), chunk_size=1)
    assert torch.equal(together, alone)


def test_number_of_frames_pads_and_cuts():
    tokens, lengths, _ = run(clock_wave(10), timestamps=[0, 1], num_frames=3, tokens_per_frame=10)
    assert tokens.shape == (3, 10, 2) and lengths.tolist() == [10, 10, 0]
    tokens, lengths, _ = run(clock_wave(10), timestamps=[0, 1, 2], num_frames=1)
    assert tokens.shape == (1, 50, 2) and lengths.tolist() == [50]
    tokens, lengths, _ = run(clock_wave(10), timestamps=[])
    assert tokens.shape == (0, 50, 2) and lengths.shape == (0,)


# --- the released slicing ---


def released(seconds, taken, num_frames):
    """The rule of the released code, on the clock's tokens, with plain lists."""
    second_tokens = {}
    for k in range(0, int(seconds), 10):
        length = int(min(seconds - k, 10) * 16_000)
        rows = step_rows(0, (1 + (length - 400) // 160) // 16, base=k)
        for i in range(10):
            if rows[50 * i : 50 * i + 50]:
                second_tokens[k + i] = pooled(rows[50 * i : 50 * i + 50])
    entries, buffer = [], []
    for second, flag in enumerate(taken):
        if second not in second_tokens:
            continue
        if flag and buffer:
            entries.append(pooled(np.concatenate(buffer)))
            buffer = []
        buffer.append(second_tokens[second])
    entries.append(pooled(np.concatenate(buffer)))
    out = np.zeros((num_frames, 50, 2))
    for j, entry in enumerate(entries[:num_frames]):
        out[j] = entry
    return out, min(len(entries), num_frames)


@pytest.mark.parametrize(
    ("seconds", "taken"),
    [
        (40.3, [1] * 40),
        (25.5, [1] * 40),
        (25.5, [1] * 12),
        (40.0, [int(i % 3 == 0) for i in range(40)]),
        (33.2, [1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1] + [0] * 20),
        (12.0, [0, 0, 1, 1]),
    ],
)
def test_release_alignment_follows_the_released_rule(seconds, taken):
    tokens, lengths, _ = run(clock_wave(seconds), alignment="release", taken=taken)
    expected, present = released(seconds, taken, sum(taken))
    np.testing.assert_allclose(tokens, expected, atol=1e-4)
    assert lengths.tolist() == [50] * present + [0] * (sum(taken) - present)


def test_release_drops_a_rest_that_would_open_a_window():
    _, lengths, clock = run(clock_wave(40.3), alignment="release", taken=[1] * 42)
    assert clock.batches == [(4, 160_000)]
    assert lengths.tolist() == [50] * 40 + [0, 0]


def test_release_encodes_no_sound_after_the_video():
    _, _, clock = run(clock_wave(60), alignment="release", taken=[1] * 12)
    assert clock.batches == [(2, 160_000)]


def test_release_survives_less_than_a_second():
    _, lengths, _ = run(clock_wave(0.4), alignment="release", taken=[1, 1])
    assert lengths.tolist() == [50, 0]


def test_half_precision_rounds_the_waveform():
    wave = torch.full((16_000,), 0.1)
    exact, _, _ = run(wave, timestamps=[0])
    rounded, _, _ = run(wave, timestamps=[0], half_precision=True)
    assert exact[0, 0, 0].item() == pytest.approx(0.1, abs=1e-7)
    assert rounded[0, 0, 0].item() == torch.tensor(0.1).half().item()


# --- the rest ---


def test_with_the_real_encoder():
    torch.manual_seed(0)
    beats = BEATs(
        BEATsConfig(
            embed_dim=8,
            encoder_layers=1,
            encoder_embed_dim=16,
            encoder_ffn_embed_dim=8,
            encoder_attention_heads=2,
            conv_pos=4,
            conv_pos_groups=2,
        )
    ).eval()
    wave = torch.randn(21 * 16_000) * 0.1
    with torch.no_grad():
        tokens, lengths = audio_tokens(beats, wave, timestamps=range(22))
        window, _ = beats(wave[None, 160_000:320_000])
    assert tokens.shape == (22, 50, 16) and lengths.tolist() == [50] * 21 + [0]
    expected = pool_tokens(window[0, 18 * 8 : 25 * 8], 50)
    torch.testing.assert_close(tokens[13], expected, atol=1e-4, rtol=1e-4)
    beats.bfloat16()
    with torch.no_grad():
        assert audio_tokens(beats, wave, timestamps=[0])[0].dtype == torch.bfloat16


@pytest.mark.parametrize("length", [1, 7, 22, 46, 50, 146])
def test_pooling(length):
    rows = torch.randn(length, 3, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(pool_tokens(rows, 50), pooled(rows), atol=1e-6)


@pytest.mark.parametrize(
    ("wave", "kwargs", "message"),
    [
        (torch.zeros(0), {"timestamps": [0]}, r"waveform must be \[n\].*got \[0\]"),
        (torch.zeros(1, 9), {"timestamps": [0]}, r"waveform must be \[n\].*got \[1, 9\]"),
        (torch.zeros(9), {}, "timestamps is missing"),
        (torch.zeros(9), {"timestamps": [1, 0]}, "timestamps must be ascending"),
        (torch.zeros(9), {"alignment": "release", "timestamps": [0]}, "taken is missing"),
        (torch.zeros(9), {"alignment": "x"}, 'alignment must be "time" or "release", got \'x\''),
    ],
)
def test_errors_name_the_argument(wave, kwargs, message):
    with pytest.raises(InputError, match=message):
        run(wave, **kwargs)

# SPDX-License-Identifier: Apache-2.0
"""What counts as sound: arrays of any number type and rate, and videos whose own sound is bad."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clips import tone, write_clip
from toy import toy_config, toy_processor

from tdc.errors import InputError
from tdc.processor.media_inputs import load_sound

CONFIG = toy_config()
WAVE = tone(1)[0]


@pytest.mark.parametrize(
    ("kind", "scale", "centre"),
    [("int8", 128, 0), ("int16", 32768, 0), ("int32", 2**31, 0), ("uint8", 128, 128)],
)
def test_integers_are_scaled(kind: str, scale: int, centre: int) -> None:
    array = (WAVE.astype(np.float64) * scale + centre).astype(kind)
    heard = load_sound(CONFIG, array)
    assert heard is not None and heard.dtype == np.float32
    np.testing.assert_allclose(heard, WAVE, atol=1.1 / scale + 1e-6)


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
def test_floats_stay(kind: str) -> None:
    np.testing.assert_allclose(load_sound(CONFIG, WAVE.astype(kind)), WAVE, atol=1e-3)


@pytest.mark.parametrize("rate", [8000, 44100, np.int64(48000), 48000.0])
def test_a_rate_is_resampled(rate: Any) -> None:
    wave = (tone(2.5, rate=int(rate))[0] * 32767).astype(np.int16)
    heard = load_sound(CONFIG, (wave, rate))
    assert heard is not None and len(heard) == pytest.approx(40000, abs=20)
    np.testing.assert_allclose(heard[100:39000], tone(2.5)[0][100:39000], atol=2e-3)
    np.testing.assert_array_equal(load_sound(CONFIG, (WAVE, 16000)), WAVE)


def test_an_array_that_is_no_number_is_silence(caplog: pytest.LogCaptureFixture) -> None:
    wave = WAVE.copy()
    wave[[5, 7]] = np.nan, np.inf
    heard = load_sound(CONFIG, wave)
    assert heard is not None and heard[5] == heard[7] == 0 and np.isnan(wave[5])
    assert heard[6] == wave[6] and "audio: 2 of 16000 sound samples" in caplog.text


@pytest.mark.parametrize(
    ("sound", "message"),
    [
        (np.zeros((2, 9), np.float32), r"audio has shape \[2, 9\]; expected one mono waveform"),
        (np.zeros(9, np.int64), "audio is int64; expected"),
        (np.zeros(9, bool), "audio is bool; expected"),
        (np.zeros(9, complex), "audio is complex128; expected"),
        ((16000, np.zeros(9)), r"audio: got a rate of ndarray \[9\]; expected \(waveform, rate\)"),
        ((np.zeros(9), 0), "audio: got a rate of int 0; expected"),
        ((np.zeros(9), 8000.5), "audio: got a rate of float 8000.5; expected"),
        ((np.zeros(9), float("nan")), "audio: got a rate of float nan; expected"),
        ((np.zeros(9), "16 kHz"), "audio: got a rate of str '16 kHz'; expected"),
    ],
)
def test_other_arrays_are_refused(sound: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_sound(CONFIG, sound)
    assert "\n" not in str(caught.value)


def test_a_video_with_bad_sound_is_silent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_clip(tmp_path / "a.mkv", frames=60, audio=tone(2))
    path.write_bytes(path.read_bytes().replace(b"A_AAC", b"A_XYZ"))
    inputs = toy_processor(CONFIG)(text="<video>", videos=[path])
    assert inputs["media_frames"].tolist() == [2] and "waveforms" not in inputs
    assert "no decoder for its audio codec; the video is taken as silent" in caplog.text
    with pytest.raises(InputError, match="no decoder for its audio codec"):
        load_sound(CONFIG, path)  # asked for by name, it is needed

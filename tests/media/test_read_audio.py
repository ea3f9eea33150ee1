# SPDX-License-Identifier: Apache-2.0
"""Sound on the video's clock: offsets, holes, channels, damage."""

from __future__ import annotations

import logging
import wave as wavefile
from pathlib import Path

import numpy as np
import pytest
from clips import tone, truncate, write_clip

from tdc.errors import InputError
from tdc.media.audio import has_audio, read_audio


def heard(wave: np.ndarray, rate: int = 16000) -> tuple[float, float]:
    """First and last moment (s) at which the wave is loud."""
    loud = np.flatnonzero(np.abs(wave) > 0.05)
    return loud[0] / rate, loud[-1] / rate


def pitch(wave: np.ndarray, rate: int = 16000) -> float:
    """Strongest frequency in Hz."""
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave))))
    return float(spectrum.argmax() * rate / len(wave))


def write_wav(path: Path, samples: np.ndarray, rate: int) -> Path:
    """Write [channels, n] in [-1, 1] as 16-bit PCM."""
    with wavefile.open(str(path), "wb") as out:
        out.setnchannels(len(samples))
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes((samples.T * 32767).round().astype("<i2").tobytes())
    return path


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_sound_of_a_video(tmp_path: Path, name: str) -> None:
    wave = read_audio(write_clip(tmp_path / name, frames=60, audio=tone(1.5)))
    assert wave.dtype == np.float32 and wave.ndim == 1
    first, last = heard(wave)
    assert first == pytest.approx(0, abs=0.005) and last == pytest.approx(1.5, abs=0.005)
    assert pitch(wave[4000:20000]) == pytest.approx(440, abs=2)
    assert np.abs(wave[4000:20000]).max() == pytest.approx(0.5, abs=0.03)


def test_resampling_keeps_time_and_level(tmp_path: Path) -> None:
    clicks = np.zeros((1, 3 * 44100), np.float32)
    clicks[0, [44100, 2 * 44100]] = 0.9
    wave = read_audio(write_wav(tmp_path / "c.wav", clicks, 44100))
    assert len(wave) == 48000
    assert wave[:24000].argmax() == 16000 and wave[24000:].argmax() + 24000 == 32000
    same = read_audio(write_wav(tmp_path / "t.wav", tone(0.5), 16000))
    np.testing.assert_allclose(same, tone(0.5)[0], atol=1e-4)
    assert len(read_audio(tmp_path / "t.wav", sample_rate=48000)) == 24000


def test_channels(tmp_path: Path) -> None:
    left, right = tone(1, hertz=300)[0], tone(1, hertz=1000)[0]
    path = write_wav(tmp_path / "s.wav", np.stack([left, right]), 16000)
    np.testing.assert_allclose(read_audio(path), (left + right) / 2, atol=1e-3)
    np.testing.assert_allclose(read_audio(path, channel="first"), left, atol=1e-3)


@pytest.mark.parametrize("rate", [16000, 48000])
@pytest.mark.parametrize("channels", [2, 3, 6, 8, 16])
def test_mix_is_the_mean_of_all_channels(tmp_path: Path, channels: int, rate: int) -> None:
    """Whatever their places: resampling is linear, so that it can come after."""
    tones = [tone(1, rate=rate, hertz=200 + 100 * k)[0] for k in range(channels)]
    together = read_audio(write_wav(tmp_path / "c.wav", np.stack(tones), rate))
    mean = read_audio(write_wav(tmp_path / "m.wav", np.mean(tones, axis=0)[None], rate))
    np.testing.assert_allclose(together, mean, atol=1e-4)


def test_loud_stereo_is_not_clipped(tmp_path: Path) -> None:
    loud = 1.9 * tone(1, channels=2)
    wave = read_audio(write_wav(tmp_path / "l.wav", loud, 16000))
    np.testing.assert_allclose(wave, loud[0], atol=1e-3)


def test_overshoot_stays_in_range(tmp_path: Path) -> None:
    square = np.sign(tone(1, rate=44100, hertz=997))
    wave = read_audio(write_wav(tmp_path / "q.wav", square, 44100))
    assert np.abs(wave).max() == 1.0


def test_six_channels(tmp_path: Path) -> None:
    audio = tone(1, rate=48000, channels=6)
    path = write_clip(tmp_path / "s.mkv", frames=30, audio=audio, audio_rate=48000)
    assert pitch(read_audio(path)[2000:14000]) == pytest.approx(440, abs=2)
    assert np.abs(read_audio(path)).max() <= 1


@pytest.mark.parametrize("name", ["late.mp4", "late.mkv"])
def test_late_sound_is_preceded_by_silence(tmp_path: Path, name: str) -> None:
    path = write_clip(tmp_path / name, frames=90, audio=tone(1), audio_offset=0.75)
    first, last = heard(read_audio(path))
    assert first == pytest.approx(0.75, abs=0.005) and last == pytest.approx(1.75, abs=0.005)


def test_sound_before_the_picture_is_cut(tmp_path: Path) -> None:
    both = np.concatenate([tone(1, hertz=300), tone(1, hertz=1000)], axis=1)
    path = write_clip(tmp_path / "e.mkv", times=[1 + i / 30 for i in range(30)], audio=both)
    wave = read_audio(path)
    assert len(wave) / 16000 == pytest.approx(1, abs=0.1)
    assert pitch(wave[200:12000]) == pytest.approx(1000, abs=3)


def test_audio_file_starts_with_its_sound(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.m4a", video=False, audio=tone(1), audio_offset=2)
    assert heard(read_audio(path))[0] == pytest.approx(0, abs=0.07)  # priming, at most a frame


def test_hole_is_filled_with_silence(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "h.mkv", frames=90, audio=tone(2), audio_gap=(1.024, 0.5))
    wave = read_audio(path)
    assert heard(wave)[1] == pytest.approx(2.5, abs=0.01)
    assert np.abs(wave[int(1.15 * 16000) : int(1.45 * 16000)]).max() < 0.02
    assert np.abs(wave[int(1.6 * 16000) : int(2.4 * 16000)]).max() > 0.4


def test_range_is_a_slice_of_the_whole(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = rng.uniform(-0.5, 0.5, (1, 4 * 44100)).astype(np.float32)
    path = write_clip(tmp_path / "r.mp4", frames=120, audio=noise, audio_rate=44100)
    whole = read_audio(path)
    np.testing.assert_array_equal(read_audio(path, start=1.25, end=2.5), whole[20000:40000])
    np.testing.assert_array_equal(read_audio(path, start=3), whole[48000:])
    frame = 108 * 1024 / 44100  # where an AAC frame ends, the resampler has no sample to spare
    np.testing.assert_array_equal(read_audio(path, end=frame), whole[: round(frame * 16000)])
    assert len(read_audio(path, end=99)) == len(whole)
    assert read_audio(path, start=99).shape == (0,)


def test_cut_off_keeps_what_decoded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = write_clip(tmp_path / "w.mkv", frames=300, audio=tone(10))
    cut = truncate(whole, tmp_path / "c.mkv", 0.5)
    with caplog.at_level(logging.WARNING):
        read_audio(whole)
        assert not caplog.records
        wave = read_audio(cut)
    assert 3 < len(wave) / 16000 < 7
    assert pitch(wave[: 3 * 16000]) == pytest.approx(440, abs=1)
    [record] = caplog.records
    assert record.getMessage().startswith(f"{cut}: the sound is cut off: it ends at ")
    caplog.clear()
    read_audio(cut, end=2)
    assert not caplog.records


def test_has_audio(tmp_path: Path) -> None:
    assert has_audio(write_clip(tmp_path / "a.mp4", frames=3, audio=tone(0.5)))
    assert not has_audio(write_clip(tmp_path / "b.mp4", frames=3))


def test_bad_input_gets_one_line(tmp_path: Path) -> None:
    silent = write_clip(tmp_path / "s.mp4", frames=3)
    text = tmp_path / "t.txt"
    text.write_text("hello world\n" * 100)
    for path, message in {
        silent: f"{silent} has no audio track",
        text: f"not an audio or video file: {text} is a text",
        tmp_path / "none.wav": f"no such file: {tmp_path}/none.wav",
        tmp_path: f"{tmp_path} is a directory, expected an audio or video file",
    }.items():
        with pytest.raises(InputError) as caught:
            read_audio(path)
        assert str(caught.value) == message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sample_rate": 0}, "sample_rate: got 0, expected Hz above 0"),
        ({"channel": "left"}, 'channel: got \'left\', expected "mix" or "first"'),
        ({"start": -1.0}, "start: got -1.0 s, expected 0 or more"),
        ({"start": 2.0, "end": 1.0}, "end: got 1.0 s, expected more than start (2.0 s)"),
    ],
)
def test_bad_arguments(tmp_path: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_audio(tmp_path / "x.wav", **arguments)  # type: ignore[arg-type]
    assert str(caught.value) == message

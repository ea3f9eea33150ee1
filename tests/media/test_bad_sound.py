# SPDX-License-Identifier: Apache-2.0
"""Sound that FFmpeg cannot decode, that is no number, or that is hardly there."""

from __future__ import annotations

import wave as wavefile
from pathlib import Path

import av
import numpy as np
import pytest
from broken_media import Reader
from clips import tone, write_clip

from tdc.errors import InputError
from tdc.media.audio import has_audio, read_audio
from tdc.media.video import probe, read_video


def rename_codec(path: Path, name: bytes) -> Path:
    """Give the first sound track of an MP4, MOV or MKV another codec, without a header."""
    data = path.read_bytes().replace(b"A_AAC", b"A_XYZ")
    first = data.find(b"mp4a")
    if first >= 0:
        last = data.index(b"stts", first)
        track = data[first:last].replace(b"mp4a", name).replace(b"esds", b"free")
        data = data[:first] + track + data[last:]
    path.write_bytes(data)
    return path


def two_tracks(path: Path) -> Path:
    """A MOV of two sound tracks, the main one of 300 Hz and one of 1000 Hz."""
    with av.open(str(path), "w") as out:
        streams = [out.add_stream("aac", rate=16000, layout="mono") for _ in range(2)]
        for stream, hertz in zip(streams, (300, 1000), strict=True):
            frame = av.AudioFrame.from_ndarray(tone(2, hertz=hertz), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, 0
            out.mux(stream.encode(frame))
            out.mux(stream.encode())
    return path


def pitch(wave: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(wave[4000:20000]))
    return float(spectrum.argmax())


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.mov"])
def test_an_unknown_codec_leaves_the_picture(tmp_path: Path, name: str) -> None:
    path = write_clip(tmp_path / name, frames=60, audio=tone(2))
    rename_codec(path, b"xyzw")
    info = probe(path)
    assert (info.has_audio, info.audio_codec) == (True, None) and has_audio(path)
    assert len(read_video(path).frames) == 2
    with pytest.raises(InputError, match="this FFmpeg has no decoder for its audio codec"):
        read_audio(path)


def test_the_track_that_can_be_decoded_is_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = two_tracks(tmp_path / "a.mov")
    assert pitch(read_audio(path)) == pytest.approx(300, abs=2)
    rename_codec(path, b"xyzw")
    assert pitch(read_audio(path)) == pytest.approx(1000, abs=2)
    assert not caplog.records  # a phone's spatial sound lies beside a track for everybody


def test_the_next_track_is_taken_if_nothing_of_the_best_decodes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = two_tracks(tmp_path / "a.mov")
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        for packet in container.demux(container.streams.audio[0]):
            if packet.size:
                data[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
    path.write_bytes(data)
    assert pitch(read_audio(path)) == pytest.approx(1000, abs=2)
    assert "nothing of its audio track 0 can be decoded" in caplog.text


def write_float_wav(path: Path, wave: np.ndarray, rate: int) -> Path:
    """Write [n] as 32-bit floats, in or out of range."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("pcm_f32le", rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(wave[None], format="flt", layout="mono")
        frame.sample_rate = rate
        out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


@pytest.mark.parametrize("rate", [16000, 48000])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_silence(
    tmp_path: Path, bad: float, rate: int, caplog: pytest.LogCaptureFixture
) -> None:
    wave = tone(1, rate=rate)[0]
    good = read_audio(write_float_wav(tmp_path / "g.wav", wave, rate))
    wave[rate // 2 : rate // 2 + 100] = bad
    path = write_float_wav(tmp_path / "b.wav", wave, rate)
    assert not caplog.records
    heard = read_audio(path)
    first, last = 8000, 8000 + 100 * 16000 // rate
    assert heard.shape == good.shape and not heard[first:last].any()
    np.testing.assert_array_equal(heard[: first - 40], good[: first - 40])
    np.testing.assert_array_equal(heard[last + 40 :], good[last + 40 :])
    [record] = caplog.records
    assert "sound samples are no finite numbers; they are taken as silence" in record.getMessage()


@pytest.mark.parametrize("samples", [0, 1, 10, 399])
def test_hardly_any_sound(tmp_path: Path, samples: int, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "s.wav"
    with wavefile.open(str(path), "wb") as out:
        out.setparams((1, 2, 16000, 0, "NONE", ""))
        out.writeframes(bytes(2 * samples))
    assert read_audio(path).shape == (samples,)
    assert [r.getMessage() for r in caplog.records] == (
        [] if samples else [f"{path}: its audio track is empty"]
    )


@pytest.mark.parametrize("channel", ["mix", "first"])
@pytest.mark.parametrize("channels", [3, 8, 9, 16])
def test_any_number_of_channels(tmp_path: Path, channels: int, channel: str) -> None:
    """PyAV 18 dies of more than eight planes."""
    path, wave = tmp_path / "c.wav", (tone(1)[0] * 20000).astype("<i2")
    with wavefile.open(str(path), "wb") as out:
        out.setparams((channels, 2, 16000, 0, "NONE", ""))
        out.writeframes(np.repeat(wave[:, None], channels, axis=1).tobytes())
    heard = read_audio(path, channel=channel)  # type: ignore[arg-type]
    assert heard.shape == (16000,)
    assert pitch(np.pad(heard, (0, 4000))) == pytest.approx(440, abs=2)


def test_channels_that_ffmpeg_cannot_mix(tmp_path: Path) -> None:
    path = tmp_path / "c.wav"
    wave = np.stack([tone(1)[0], 0 * tone(1)[0]], axis=1)
    with wavefile.open(str(path), "wb") as out:
        out.setparams((2, 2, 16000, 0, "NONE", ""))
        out.writeframes((wave * 32767).astype("<i2").tobytes())
    data = path.read_bytes()
    # WAVE_FORMAT_EXTENSIBLE with the speakers front left (1) and front centre (4).
    form = (
        b"\xfe\xff"
        + data[22:36]
        + b"\x16\0\x10\0\x05\0\0\0\x01\0\0\0\0\0\x10\0\x80\0\0\xaa\0\x38\x9b\x71"
    )
    path.write_bytes(data[:16] + len(form).to_bytes(4, "little") + form + data[36:])
    np.testing.assert_allclose(read_audio(path), wave.mean(axis=1), atol=1e-3)


@pytest.mark.parametrize("tag", [122, 124])  # MPEG 5.1 B and D, of four orders of channels
def test_channels_in_any_order(tmp_path: Path, tag: int) -> None:
    """PyAV 17 and 18 die of an order that is not FFmpeg's own."""
    path = tmp_path / "c.mov"
    levels = np.repeat(np.arange(1, 7, dtype="<i2")[None] * 1000, 16000, axis=0)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("pcm_s16le", rate=16000, layout="5.1")
        frame = av.AudioFrame.from_ndarray(levels.reshape(1, -1), format="s16", layout="5.1")
        frame.sample_rate, frame.pts = 16000, 0
        out.mux(stream.encode(frame))
        out.mux(stream.encode())
    data = bytearray(path.read_bytes())
    first = data.index(b"chan") + 8
    data[first : first + 4] = (tag << 16 | 6).to_bytes(4, "big")
    path.write_bytes(data)
    reader = Reader()
    assert reader.read(path) == ""  # a process of its own
    reader.close()
    np.testing.assert_allclose(read_audio(path), 3500 / 32768, rtol=1e-6)
    np.testing.assert_allclose(read_audio(path, channel="first"), 1000 / 32768, rtol=1e-6)


def test_a_time_stamp_that_is_damage(tmp_path: Path) -> None:
    """Sound that would begin 11 days after the pictures: 64 GB of silence."""
    path = write_clip(tmp_path / "t.mkv", frames=25, audio=tone(1), audio_offset=1e6)
    assert len(read_audio(path)) == pytest.approx(16000, abs=1600)


def test_a_rate_that_is_damage(tmp_path: Path) -> None:
    """A second's samples at 1 Hz would be hours of sound."""
    path = write_float_wav(tmp_path / "r.wav", tone(1)[0], 16000)
    path.write_bytes(path.read_bytes().replace((16000).to_bytes(4, "little"), b"\1\0\0\0", 1))
    with pytest.raises(InputError, match="nothing of its audio track can be decoded"):
        read_audio(path)


def test_sound_that_is_damaged_throughout(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "w.mp4", frames=60, audio=tone(2))
    rename_codec(path, b"alac")
    assert len(read_video(path).frames) == 2 and probe(path).has_audio
    with pytest.raises(InputError, match="nothing of its audio track can be decoded"):
        read_audio(path)

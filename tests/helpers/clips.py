# SPDX-License-Identifier: Apache-2.0
"""Odd clips for the tests: every frame carries its own number, so that any mix-up shows.

A numbered picture has ten vertical stripes, one per bit of the number (white = 1), and its lower
half is the upper one inverted: a mirrored, turned or upside-down picture reads as another number.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

BITS = 10
TIME_BASE = Fraction(1, 30000)  # fine enough for any time; MPEG-4 allows no more than 1/65535


def numbered(number: int, size: tuple[int, int]) -> np.ndarray:
    """Picture [H, W, 3] uint8 of `size` (width, height) that shows `number` in stripes."""
    width, height = size
    bits = np.array([(number >> b) & 1 for b in range(BITS)], dtype=np.uint8)
    row = bits[np.arange(width) * BITS // width] * 255
    picture = np.repeat(row[None, :], height, axis=0)
    picture[height // 2 :] = 255 - picture[height // 2 :]
    return np.repeat(picture[:, :, None], 3, axis=2)


def number_of(picture: np.ndarray) -> int:
    """The number a decoded picture [H, W, 3] shows; -1 if its halves do not agree."""
    height, width = picture.shape[:2]
    centres = ((np.arange(BITS) + 0.5) * width / BITS).astype(int)
    upper = picture[height // 4, centres].mean(axis=-1) > 127
    lower = picture[height - 1 - height // 4, centres].mean(axis=-1) > 127
    if (upper == lower).any():
        return -1
    return int(sum(1 << b for b in range(BITS) if upper[b]))


def numbers_of(frames: np.ndarray) -> list[int]:
    return [number_of(frame) for frame in frames]


def tone(
    seconds: float, *, rate: int = 16000, hertz: float = 440.0, channels: int = 1
) -> np.ndarray:
    """Sine [channels, n] float32 of amplitude 0.5."""
    wave = 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)
    return np.repeat(wave[None, :].astype(np.float32), channels, axis=0)


def write_clip(
    path: Path | str,
    *,
    times: Sequence[float] | None = None,
    frames: int = 30,
    fps: float = 30,
    size: tuple[int, int] = (96, 64),
    rotation: int = 0,
    flip: bool = False,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    gop: int = 30,
    b_frames: int = 2,
    video: bool = True,
    audio: np.ndarray | None = None,
    audio_rate: int = 16000,
    audio_codec: str = "aac",
    audio_offset: float = 0.0,
    audio_gap: tuple[float, float] | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Write numbered frames 0, 1, 2, … with any timing, rotation and sound; returns `path`.

    `times` are the frames' presentation times in seconds (variable frame rate); without them
    `frames` frames at `fps`. `size` is the upright size; `rotation` (0, 90, 180, 270 degrees
    counter-clockwise, with `flip` mirrored afterwards) is what a player must do to the stored
    picture. `audio` is [channels, n] at `audio_rate`, starting at `audio_offset` seconds, with
    everything after `audio_gap[0]` seconds of sound delayed by `audio_gap[1]`.
    """
    times = [i / fps for i in range(frames)] if times is None else list(times)
    with av.open(str(path), "w", container_options=container_options or {}) as out:
        streams: list[Any] = []
        if video:
            streams.append(
                _video_stream(out, codec, pixels, fps, size, rotation, flip, gop, b_frames, options)
            )
        if audio is not None:
            layout = {1: "mono", 2: "stereo", 6: "5.1"}[len(audio)]
            streams.append(out.add_stream(audio_codec, rate=audio_rate, layout=layout))
        if video:
            for number, time in enumerate(times):
                stored = _stored(numbered(number, size), rotation, flip)
                frame = av.VideoFrame.from_ndarray(stored, format="rgb24").reformat(format=pixels)
                frame.time_base, frame.pts = TIME_BASE, round(time / TIME_BASE)
                out.mux(streams[0].encode(frame))
            out.mux(streams[0].encode())
        if audio is not None:
            _encode_audio(out, streams[-1], audio, audio_rate, audio_offset, audio_gap)
    return Path(path)


def _stored(upright: np.ndarray, rotation: int, flip: bool) -> np.ndarray:
    """The picture as the camera stored it: the opposite of what the metadata asks for."""
    if flip:
        upright = upright[:, ::-1]
    return np.ascontiguousarray(np.rot90(upright, -(rotation // 90)))


def _video_stream(
    out: Any,
    codec: str,
    pixels: str,
    fps: float,
    size: tuple[int, int],
    rotation: int,
    flip: bool,
    gop: int,
    b_frames: int,
    options: dict[str, str] | None,
) -> Any:
    defaults = {"crf": "12", "preset": "ultrafast", "sc_threshold": "0"}
    stream = out.add_stream(
        codec, rate=Fraction(fps).limit_denominator(1001), options=options or defaults
    )
    width, height = size if rotation % 180 == 0 else size[::-1]
    stream.width, stream.height, stream.pix_fmt = width, height, pixels
    exact = codec in ("mpeg1video", "mpeg2video")  # these have a fixed frame rate
    stream.codec_context.time_base = 1 / Fraction(fps) if exact else TIME_BASE
    stream.codec_context.gop_size = gop
    if codec in ("libx264", "mpeg4"):
        stream.codec_context.max_b_frames = b_frames if codec == "libx264" else 0
    if rotation or flip:
        if not hasattr(stream, "set_display_rotation"):
            pytest.skip("PyAV before 17 writes no display matrix")
        stream.set_display_rotation(rotation, hflip=flip)
    return stream


def _encode_audio(
    out: Any,
    stream: Any,
    audio: np.ndarray,
    rate: int,
    offset: float,
    gap: tuple[float, float] | None,
) -> None:
    step = 1024
    for first in range(0, audio.shape[1], step):
        samples = np.ascontiguousarray(audio[:, first : first + step])
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=stream.layout.name)
        late = gap[1] if gap and first / rate >= gap[0] else 0.0
        frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
        frame.pts = first + round((offset + late) * rate)
        out.mux(stream.encode(frame))
    out.mux(stream.encode())


def pans(*lengths: int) -> np.ndarray:
    """uint8 ``[F, 64, 64, 3]``: scenes of so many frames, each a window that moves over its own
    wide picture of random patches in its own tint."""
    frames: list[np.ndarray] = []
    for scene, length in enumerate(lengths):
        dice = np.random.default_rng(scene)
        patches = dice.integers(0, 85, (16, 32, 3)) + dice.permutation([0, 60, 150])
        wide = patches.astype(np.uint8).repeat(4, axis=0).repeat(4, axis=1)
        frames += [wide[:, k : k + 64] for k in range(length)]
    return np.stack(frames)


def write_frames(path: Path, pictures: np.ndarray, fps: int) -> Path:
    """Write pictures ``[F, H, W, 3]`` as H.264; returns `path`."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=fps, options={"crf": "12"})
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for picture in pictures:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
    return path


def truncate(source: Path, target: Path, share: float) -> Path:
    """Copy the first `share` of the bytes of `source`, as a broken download leaves it."""
    data = source.read_bytes()
    target.write_bytes(data[: int(len(data) * share)])
    return target


def set_edits(path: Path, edits: Sequence[tuple[float | None, float]]) -> Path:
    """Give the first track of an MP4 (index at its end) an edit list of (start, length) in seconds.

    A start of None shows nothing for that long. Start 0 is the first moment of the pictures.
    """
    data = bytearray(path.read_bytes())
    moov = data.rindex(b"moov") - 4
    movie = _scale(data, data.index(b"mvhd", moov))
    media = _scale(data, data.index(b"mdhd", moov))
    old = data.index(b"edts", moov) - 4
    size = int.from_bytes(data[old : old + 4], "big")
    shift = int.from_bytes(data[old + 28 : old + 32], "big")  # of the one edit: the B-frames' delay
    entries = b"".join(
        round(length * movie).to_bytes(4, "big")
        + (-1 if start is None else shift + round(start * media)).to_bytes(4, "big", signed=True)
        + (1 << 16).to_bytes(4, "big")
        for start, length in edits
    )
    elst = _box(b"elst", bytes(4) + len(edits).to_bytes(4, "big") + entries)
    edts = _box(b"edts", elst)
    for box in (moov, data.index(b"trak", moov) - 4):
        grown = int.from_bytes(data[box : box + 4], "big") + len(edts) - size
        data[box : box + 4] = grown.to_bytes(4, "big")
    data[old : old + size] = edts
    path.write_bytes(data)
    return path


def _box(name: bytes, body: bytes) -> bytes:
    return (8 + len(body)).to_bytes(4, "big") + name + body


def _scale(data: bytearray, header: int) -> int:
    """Ticks a second in an mvhd or mdhd box of version 0."""
    return int.from_bytes(data[header + 16 : header + 20], "big")

# SPDX-License-Identifier: Apache-2.0
"""Writing of clips as MP4 files, so that they are read like any video."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tdc.encoder.fbank import SAMPLE_RATE
from tdc.errors import InputError
from tdc.files import whole_file
from tdc.media import pyav as av

from .clips import Clip
from .render import MIN_SIZE, render_frames
from .sounds import render_sound

MAX_FPS = 60
# mbtree reads uninitialised memory in small pictures; one thread: the same bytes on every machine.
_H264 = {"preset": "veryfast", "x264-params": "mbtree=0:threads=1"}
_MPEG4 = {"qscale": "2", "b": "4000000"}  # where FFmpeg has no libx264


def check_size(size: int, fps: int) -> None:
    """Raise `InputError` for sizes and rates that a file cannot have (4:2:0 needs even sides)."""
    if size < MIN_SIZE or size % 2:
        raise InputError(f"size: got {size}, expected an even number, {MIN_SIZE} or more")
    if not 1 <= fps <= MAX_FPS:
        raise InputError(f"fps: got {fps}, expected 1 to {MAX_FPS}")


def write_clip(
    path: str | os.PathLike[str],
    clip: Clip,
    *,
    size: int = 64,
    fps: int = 8,
    crf: int = 14,
    sound_bits: int = 128_000,
) -> Path:
    """Encode a clip with H.264 and AAC (mono, 16 kHz); the file appears whole or not at all.

    Args:
        path: where to write; an existing file is replaced.
        clip: what to write.
        size: pixels of each side, even.
        fps: frames per second of the file. Objects move continuously; sampled at one frame a second
            the file shows the frames of `render_frames`.
        crf: constant rate factor of H.264: higher is smaller and coarser.
        sound_bits: bits per second of the sound.

    Raises:
        InputError: `size` or `fps` out of range, a folder that cannot be written.
    """
    check_size(size, fps)
    frames, sound = render_frames(clip, size, fps), render_sound(clip)
    with whole_file(path) as temporary:
        _encode(temporary, frames, fps, sound, crf, sound_bits)
    return Path(path)


def write_image(path: str | os.PathLike[str], clip: Clip, *, size: int = 64) -> Path:
    """Write the clip's first frame as PNG."""
    with whole_file(path) as temporary:
        Image.fromarray(render_frames(clip, size)[0]).save(temporary)
    return Path(path)


def _encode(
    path: Path, frames: np.ndarray, fps: int, sound: np.ndarray, crf: int, sound_bits: int
) -> None:
    h264 = "libx264" in av.codecs_available
    with av.open(str(path), "w", format="mp4") as out:
        codec, options = ("libx264", {**_H264, "crf": str(crf)}) if h264 else ("mpeg4", _MPEG4)
        video: Any = out.add_stream(codec, rate=fps, options=options)
        video.height, video.width = frames.shape[1:3]
        video.pix_fmt = "yuv420p"
        video.codec_context.gop_size = 2 * fps
        audio: Any = out.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        audio.bit_rate = sound_bits
        heard = 0
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            out.mux(video.encode(frame))
            # Audio is interleaved frame by frame, as players expect.
            until = (number + 1) * SAMPLE_RATE // fps
            out.mux(audio.encode(_audio_frame(sound[heard:until], heard)))
            heard = until
        out.mux(video.encode())
        out.mux(audio.encode())


def _audio_frame(samples: np.ndarray, first: int) -> av.AudioFrame:
    frame = av.AudioFrame.from_ndarray(
        np.ascontiguousarray(samples[None]), format="fltp", layout="mono"
    )
    frame.sample_rate, frame.pts = SAMPLE_RATE, first
    frame.time_base = Fraction(1, SAMPLE_RATE)
    return frame

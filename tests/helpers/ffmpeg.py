# SPDX-License-Identifier: Apache-2.0
"""FFmpeg's own command: it writes the odd clips and says, independently, what a file shows when."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from clips import number_of, numbered

SIZE = (160, 64)  # stripes of 16 pixels survive every codec


def ffmpeg() -> str:
    """Path of the command: IMAGEIO_FFMPEG_EXE, the package imageio-ffmpeg, or the system's."""
    try:
        import imageio_ffmpeg

        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError):
        found = os.environ.get("IMAGEIO_FFMPEG_EXE") or shutil.which("ffmpeg")
    if found is None:
        pytest.skip("no FFmpeg command: pip install imageio-ffmpeg")
    return found


def run(*arguments: str, data: bytes = b"") -> tuple[bytes, str]:
    """Standard output and error of ``ffmpeg -y arguments``."""
    command = [ffmpeg(), "-y", "-hide_banner", "-nostdin", *arguments]
    done = subprocess.run(command, input=data, capture_output=True)
    log = done.stderr.decode(errors="replace")
    assert done.returncode == 0, log
    return done.stdout, log


def encode(
    path: Path,
    *arguments: str,
    frames: int = 50,
    fps: str = "25",
    size: tuple[int, int] = SIZE,
    sound: Sequence[str] = (),
) -> Path:
    """Write frames that show 0, 1, 2, …; `sound` are arguments of a second input."""
    pictures = b"".join(numbered(i, size).tobytes() for i in range(frames))
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{size[0]}x{size[1]}", "-r", fps]
    run(*raw, "-i", "pipe:", *sound, *arguments, str(path), data=pictures)
    return path


@dataclass(frozen=True)
class Shown:
    """What FFmpeg's command shows: float64 [P] seconds from the first picture, numbers, the end."""

    times: np.ndarray
    numbers: list[int]
    end: float
    first: float  # time stamp (s) of the first picture, on the command's clock

    def at(self, times: np.ndarray) -> list[int]:
        """The numbers on screen at `times` (s)."""
        found = np.searchsorted(self.times, np.asarray(times) + 1e-4, side="right") - 1
        return [self.numbers[i] for i in np.maximum(found, 0)]


def shown(path: Path, *options: str) -> Shown:
    """Every picture of the file and when it comes up."""
    width, height = SIZE
    filters = f"showinfo,scale={width}:{height}:flags=area,format=gray"
    raw, log = run(
        *options, "-i", str(path), "-map", "0:v:0", "-vf", filters,
        "-fps_mode", "passthrough", "-f", "rawvideo", "-",
    )  # fmt: skip
    pictures = np.frombuffer(raw, np.uint8).reshape(-1, height, width, 1)
    lines = re.findall(r" pts_time: *(\S+) +duration: *\S+ +duration_time: *(\S+)", log)
    times, lengths = np.array(lines, dtype=np.float64).T
    assert len(times) == len(pictures), log
    order = np.argsort(times, kind="stable")
    first, last = times[order[0]], order[-1]
    if not lengths[last] and len(times) > 1:  # transport streams, FLV and others do not say
        lengths[last] = np.median(np.diff(times[order]))
    return Shown(
        times[order] - first,
        [number_of(pictures[i]) for i in order],
        times[last] - first + lengths[last],
        first,
    )


def heard(path: Path, rate: int = 16000) -> tuple[np.ndarray, float]:
    """Samples of the sound, float32 [n], and the first one's time stamp (s) on `shown`'s clock."""
    form = f"aresample={rate},aformat=flt:channel_layouts=mono,ashowinfo"
    raw, log = run("-i", str(path), "-map", "0:a:0", "-af", form, "-f", "f32le", "-")
    first = re.search(r"ashowinfo.* pts_time: *(\S+)", log)
    assert first, log
    return np.frombuffer(raw, np.float32), float(first[1])

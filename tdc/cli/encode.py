# SPDX-License-Identifier: Apache-2.0
"""``tdc encode``: a video's context tokens and their plan, as one safetensors file."""

from __future__ import annotations

from typing import Any

from ..files import check_writable, whole_file
from .options import (
    Subparsers,
    add_audio,
    add_model,
    add_sampling,
    add_video,
    check_folder,
    check_media,
    command,
    sampling,
)
from .terminal import activity, clean, note


def add(subparsers: Subparsers) -> None:
    parser = command(
        subparsers,
        "encode",
        run,
        "write a video's context tokens to a file",
        "The file holds the tokens [N, D] that stand for the video in a language model's prompt, "
        "and the plan that says what each of them is.",
        check=check,
    )
    add_video(parser)
    parser.add_argument(
        "-o", "--output", metavar="FILE", required=True, help="safetensors file to write"
    )
    parser.add_argument(
        "--question", metavar="Q", help="question that the compressor reads beside the frames"
    )
    add_audio(parser)
    add_sampling(parser)
    add_model(parser)


def check(arguments: Any) -> None:
    check_writable(arguments.output)
    sampling(arguments)
    check_media(arguments)
    check_folder(arguments.model)


def run(arguments: Any) -> None:
    import torch

    from .options import load, watch
    from .report import layout

    session = load(arguments)
    question = arguments.question or ""
    video = watch(arguments, session, question, **sampling(arguments))
    with activity("compressing"):
        context = video.context(question)
    tokens, plan = context.tokens[0], context.plan
    assert plan is not None
    tensors = {
        "tokens": tokens,
        "kinds": plan.kinds,
        "anchors": plan.anchors,
        "dynamic": plan.dynamic,
        "dynamic_anchor": plan.dynamic_anchor,
        "cu_static": plan.cu_static,
        "cu_context": plan.cu_context,
        "boundaries": video.features.segmentation.boundaries,
        "similarity": video.features.segmentation.video_similarity(),
        "frame_times": torch.tensor(video.features.times, dtype=torch.float64),
    }
    with whole_file(arguments.output) as temporary:
        _save(tensors, temporary, _metadata(arguments, video))
    counts = layout(video.features, plan)
    print(
        f"{arguments.output}: {counts.total:,} tokens of width {tokens.shape[1]} "
        f"({counts.static:,} static, {counts.audio:,} audio, {counts.dynamic:,} dynamic, "
        f"{counts.separator:,} separators), {counts.ratio:.1f} times fewer than uncompressed"
    )
    if session.tiny:
        note(f"note: no --model given: {session.note}")


def _save(tensors: dict[str, Any], path: Any, metadata: dict[str, str]) -> None:
    from safetensors.torch import save_file

    save_file({k: v.cpu().contiguous().clone() for k, v in tensors.items()}, path, metadata)


def _metadata(arguments: Any, video: Any) -> dict[str, str]:
    from tdc_kernels import __version__

    fps = arguments.fps or video.session.model.config.fps
    if arguments.frames:
        fps = len(video.features.times) / max(video.end - video.start, 1e-3)
    width, height = video.inputs["media_sizes"][0].tolist()
    return {
        "format": "tdc-context",
        "version": __version__,
        "kinds": "0 static (with its sound), 1 dynamic, 2 separator",
        "video": clean(str(arguments.video)),
        "audio": clean(str(arguments.audio or "")),
        "question": arguments.question or "",
        "duration": f"{video.duration:.3f}",
        "size": f"{width}x{height}",
        "start": f"{video.start:.3f}",
        "end": f"{video.end:.3f}",
        "fps": f"{fps:g}",
        "model": clean(str(arguments.model or "tiny")),
    }

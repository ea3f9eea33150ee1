# SPDX-License-Identifier: Apache-2.0
"""``tdc demo``: the whole pipeline on one clip, with everything it did laid open."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .options import (
    Subparsers,
    add_audio,
    add_generation,
    add_model,
    check_folder,
    check_media,
    command,
)
from .terminal import activity, clean, count, one_line, table

if TYPE_CHECKING:
    from ..session import Session
    from .report import Layout


ASSETS = Path(__file__).parents[1] / "assets" / "demo"  # a clip, and what is asked about it
OWN_VIDEO = (
    "what happens in the video ?"  # asked about a video of the user's, in the tiny TDC's words
)


def add(subparsers: Subparsers) -> None:
    parser = command(
        subparsers,
        "demo",
        run,
        "run everything once and show what happens",
        "Without --video it takes a clip of the package with several scenes, motion and sound; the "
        "right answers stand beside the model's.",
        check=check,
    )
    parser.add_argument("--video", metavar="PATH", help="your own video instead of the clip")
    parser.add_argument(
        "--out",
        metavar="DIR",
        default="tdc-demo",
        help="folder for the timeline picture (default: %(default)s)",
    )
    parser.add_argument(
        "--question",
        metavar="Q",
        help="ask this instead (default for a video of yours: what happens in the video?)",
    )
    add_audio(parser)
    add_generation(parser, tokens=32)
    add_model(parser)


def check(arguments: Any) -> None:
    if arguments.video:
        check_media(arguments)
    check_folder(arguments.model)
    try:
        Path(arguments.out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"--out {arguments.out}: cannot make this folder ({error.strerror})"
        ) from None


@dataclass(frozen=True)
class _Asked:
    question: str
    truth: str | None = None  # where it is known
    answer: str = ""


def run(arguments: Any) -> None:
    from .options import load
    from .report import layout, print_scenes

    out = Path(arguments.out)
    asked = _subject(arguments)
    session = load(arguments)
    result = _Run(arguments, session, asked)
    video = result.video
    print(f"TDC demo: {clean(str(arguments.video))}, {session.note}")
    print(f"\nScenes ({count(len(video.features.times), 'frame')}, {video.duration:.1f} s)\n")
    print_scenes(video.scenes)
    print("\nContext\n")
    _print_layout(layout(video.features, video.plan), session.model.config)
    print("\nTime to the first answer\n")
    _print_times(result.seconds)
    _print_answers(result.asked)
    with activity("drawing the timeline"):
        picture = _draw(out / "timeline.png", result, clean(Path(str(arguments.video)).name))
    print(f"\nTimeline: {picture}")


def _subject(arguments: Any) -> list[_Asked]:
    """Questions about the video, which is the package's clip where none was named."""
    own = None if arguments.question is None else [_Asked(arguments.question)]
    if arguments.video:
        return own or [_Asked(OWN_VIDEO)]
    arguments.video = str(ASSETS / "clip.mp4")
    asked = json.loads((ASSETS / "questions.json").read_text(encoding="utf-8"))
    return own or [_Asked(one["question"], one["answer"]) for one in asked]


class _Run:
    """One pass through the pipeline: what came out of it, and what the first question took."""

    def __init__(self, arguments: Any, session: Session, asked: list[_Asked]) -> None:
        from ..profiling import measure
        from .options import generation_options, watch

        options = generation_options(arguments)
        first, *others = [one.question for one in asked]
        with measure() as times:
            self.video = watch(arguments, session, first, keep_media=True)
            with _prefill(session.model) as seen, activity("answering"):
                said = [self.video.ask(first, streamer=seen, **options)]
        self.seconds = _split_language_model(times.seconds, seen.seconds, seen.tokens)
        said += [self.video.ask(question, **options) for question in others]
        self.asked = [
            replace(one, answer=one_line(words)) for one, words in zip(asked, said, strict=True)
        ]


@dataclass
class _Prefill:
    """Seconds of the language model's first call, the whole prompt; and, as a streamer, how many
    tokens were made."""

    seconds: float = 0.0
    tokens: int = 0

    def put(self, tokens: Any) -> None:
        self.tokens += tokens.numel()  # the prompt comes first: none, as it was given as embeddings

    def end(self) -> None:
        pass


@contextmanager
def _prefill(model: Any) -> Iterator[_Prefill]:
    from ..profiling import now

    seen, began = _Prefill(), 0.0

    def before(*_: Any) -> None:
        nonlocal began
        began = now()

    def after(*_: Any) -> None:
        seen.seconds = seen.seconds or now() - began

    handles = [
        model.language_model.register_forward_pre_hook(before),
        model.language_model.register_forward_hook(after),
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _split_language_model(
    seconds: dict[str, float], prefill: float, new_tokens: int
) -> dict[str, float]:
    """Stage times with the language model's first call apart from the rest."""
    parts = {name: value for name, value in seconds.items() if name != "language model"}
    rest = seconds["language model"] - prefill
    return parts | {
        "language model, prompt": prefill,
        f"language model, {count(new_tokens, 'new token')}": rest,
    }


def _print_layout(counts: Layout, config: Any) -> None:
    def share(tokens: int) -> str:
        return f"{100 * tokens / counts.total:.1f} %"

    static, dynamic = count(counts.static_frames, "frame"), count(counts.dynamic_frames, "frame")
    each = "each" if config.context_allocation == "fixed" else "on average"
    rows: list[tuple[str, str, int]] = [
        ("static", f"{static} kept whole", counts.static),
        ("audio", "sound of those frames", counts.audio),
        ("dynamic", f"{dynamic} of {config.num_context_tokens} tokens {each}", counts.dynamic),
        ("separator", "one after every frame", counts.separator),
        ("total", "", counts.total),
    ]
    table(
        ["tokens", "", "number", "share"],
        [[kind, what, f"{n:,}", share(n)] for kind, what, n in rows],
        left=2,
    )
    print(
        f"\nWithout compression the same frames take {counts.uncompressed:,} tokens: "
        f"{counts.ratio:.1f} times as many."
    )
    if counts.trimmed:
        print(f"{counts.trimmed:,} tokens were cut to fit the context.")


def _print_times(seconds: dict[str, float]) -> None:
    total = sum(seconds.values())
    rows = [
        [name, f"{value:.2f}", f"{100 * value / total:.1f} %"]
        for name, value in (*seconds.items(), ("total", total))
    ]
    table(["stage", "seconds", "share"], rows)


def _print_answers(asked: list[_Asked]) -> None:
    if any(one.truth is not None for one in asked):
        print()
        rows = [[one.question, one.answer, one.truth or ""] for one in asked]
        table(["question", "answer", "truth"], rows, left=3)
        return
    for one in asked:
        print(f"\nQuestion: {one.question}\nAnswer:   {one.answer or '(empty)'}")


def _draw(path: Path, result: _Run, name: str) -> Path:
    from .report import thumbnails
    from .timeline import draw_timeline

    video = result.video
    features, inputs = video.features, video.inputs
    starts = features.segmentation.scene_starts()
    sound = inputs["waveforms"][0] if "waveforms" in inputs else None
    notes = []
    for one in result.asked:
        truth = f" (truth: {one.truth})" if one.truth is not None else ""
        notes += [("Question", one.question), ("Answer", (one.answer or "(empty)") + truth)]
    return draw_timeline(
        path,
        frames=thumbnails(inputs["siglip_pixels"][starts], inputs["media_sizes"][0].tolist()),
        timestamps=features.times,
        similarity=features.segmentation.video_similarity().float().cpu().numpy(),
        scene_starts=starts,
        anchors=video.plan.anchors.tolist(),
        duration=video.duration,
        title=name,
        notes=notes,
        waveform=None if sound is None else sound.numpy(),
    )

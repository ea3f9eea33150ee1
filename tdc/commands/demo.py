# SPDX-License-Identifier: Apache-2.0
"""``tdc demo``: the whole pipeline on one clip, with everything it did laid open."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tdc.commands._inputs import check_media
from tdc.commands._options import Subparsers, add_audio, add_generation, add_model, command
from tdc.commands._terminal import activity, count, table
from tdc.errors import InputError

if TYPE_CHECKING:
    from tdc.commands._report import Layout


def add(subparsers: Subparsers) -> None:
    parser = command(
        subparsers,
        "demo",
        run,
        "run everything once and show what happens",
        "Without --video a clip with several scenes, motion and sound is made first.",
    )
    parser.add_argument("--video", metavar="PATH", help="your own video instead of the made clip")
    parser.add_argument(
        "--out",
        metavar="DIR",
        default="tdc-demo",
        help="folder for the clip and the timeline picture (default: %(default)s)",
    )
    parser.add_argument(
        "--question",
        metavar="Q",
        default="What happens in this video?",
        help="(default: %(default)s)",
    )
    add_audio(parser)
    add_generation(parser, tokens=32)
    add_model(parser)


def run(arguments: Any) -> None:
    from tdc.commands._pipeline import load
    from tdc.commands._report import layout, print_scenes, scenes

    out = Path(arguments.out)
    video = _video(arguments, out)
    loaded = load(arguments)
    result = _Run(arguments, loaded, str(video))
    which = loaded.note if loaded.trained else "embedded small model, untrained weights"
    print(f"TDC demo: {video}, {which}")
    if not loaded.trained:
        print(
            "Everything is computed for real, but with untrained weights the answer means nothing."
        )
    features = result.encoded.features
    found = scenes(features.segmentation, features.times, result.encoded.duration)
    print(f"\nScenes ({count(len(features.times), 'frame')}, {result.encoded.duration:.1f} s)\n")
    print_scenes(found)
    print("\nContext\n")
    _print_layout(layout(features, result.plan), loaded.model.config)
    print("\nTime\n")
    _print_times(result.seconds)
    print(f"\nQuestion: {arguments.question}\nAnswer:   {result.answer or '(empty)'}")
    if not loaded.trained:
        print("          (untrained weights: it means nothing)")
    with activity("drawing the timeline"):
        picture = _draw(out / "timeline.png", arguments, loaded, result, Path(video).name)
    print(f"\nTimeline: {picture}")


def _video(arguments: Any, out: Path) -> Path:
    """The file to run on; the clip is painted where none was given."""
    from tdc.clip import write_demo_clip

    if arguments.video:
        check_media(arguments.video, arguments.audio)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out}: cannot make this folder ({error.strerror})") from None
    if arguments.video:
        return Path(arguments.video)
    with activity("painting and encoding a clip"):
        return write_demo_clip(out / "demo.mp4").path


class _Run:
    """One pass through the pipeline: what came out of it, and what it took."""

    def __init__(self, arguments: Any, loaded: Any, video: str) -> None:
        from tdc.commands._pipeline import encode_video, generation_options, one_line
        from tdc.stages import measure

        model = loaded.model
        with measure() as times:
            self.encoded = encode_video(loaded, video, arguments.question, arguments.audio)
            texts = {
                name: self.encoded.inputs[name].to(model.device)
                for name in ("input_ids", "attention_mask", "question_ids", "question_mask")
            }
            with _watch(model) as seen, activity("answering"):
                ids = model.generate(
                    **texts, features=self.encoded.features, **generation_options(arguments)
                )
        self.plan = seen.plan
        self.answer = one_line(loaded.processor.batch_decode(ids, skip_special_tokens=True)[0])
        self.seconds = _split_language_model(times.seconds, seen.prefill, ids.shape[1])


@dataclass
class _Seen:
    plan: Any = None  # of the context that the compressor made
    prefill: float = 0.0  # seconds of the language model's first call: the whole prompt
    _began: float = 0.0


@contextmanager
def _watch(model: Any) -> Iterator[_Seen]:
    seen = _Seen()

    def compressor(_module: Any, inputs: tuple[Any, ...]) -> None:
        seen.plan = inputs[1]

    from tdc.stages import now

    def before(*_: Any) -> None:
        seen._began = now()

    def after(*_: Any) -> None:
        seen.prefill = seen.prefill or now() - seen._began

    handles = [
        model.compressor.register_forward_pre_hook(compressor),
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


def _draw(path: Path, arguments: Any, loaded: Any, result: _Run, name: str) -> Path:
    from tdc.commands._report import thumbnails
    from tdc.timeline import draw_timeline

    features, inputs = result.encoded.features, result.encoded.inputs
    starts = features.segmentation.scene_starts()
    sound = inputs["waveforms"][0] if "waveforms" in inputs else None
    note = "" if loaded.trained else " (untrained weights)"
    return draw_timeline(
        path,
        frames=thumbnails(inputs["siglip_pixels"][starts], inputs["media_sizes"][0].tolist()),
        timestamps=features.times,
        similarity=features.segmentation.video_similarity().float().cpu().numpy(),
        scene_starts=starts,
        anchors=result.plan.anchors.tolist(),
        duration=result.encoded.duration,
        title=f"{name}{note}",
        question=arguments.question,
        answer=result.answer,
        waveform=None if sound is None else sound.numpy(),
    )

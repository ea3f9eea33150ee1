# SPDX-License-Identifier: Apache-2.0
"""Arguments that several commands share, and their types; imports nothing heavy."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .terminal import activity, bars

if TYPE_CHECKING:
    from ..media.media_file import MediaFile
    from ..session import Session, WatchedVideo

Subparsers = Any  # argparse names this class with a leading underscore

DTYPES = ("fp32", "bf16", "fp16")


def command(
    subparsers: Subparsers,
    name: str,
    run: Any,
    summary: str,
    text: str = "",
    loads_model: bool = True,
    check: Callable[[Any], None] = lambda arguments: None,
) -> argparse.ArgumentParser:
    """A subcommand: ``summary`` is its line in ``tdc --help``, ``text`` what its own help adds;
    ``check(arguments)`` refuses bad input before torch and transformers are imported."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name,
        help=summary,
        description=" ".join(f"{summary[0].upper()}{summary[1:]}. {text}".split()),
    )
    parser.set_defaults(run=run, loads_model=loads_model, check=check)
    return parser


def add_model(
    parser: argparse.ArgumentParser, default: str = "the tiny TDC that comes with the package"
) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        metavar="DIR",
        help=f"folder written by tdc convert or save_pretrained (default: {default})",
    )
    group.add_argument(
        "--device", metavar="D", help="cpu, cuda or cuda:N (default: the GPUs if there are any)"
    )
    group.add_argument(
        "--dtype",
        choices=DTYPES,
        help="precision of the weights (default: as saved on GPUs, fp32 on the CPU)",
    )


def add_audio(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--audio",
        metavar="FILE",
        help="sound from another file (- for the standard input) instead of the video's own track",
    )


def add_sampling(
    parser: argparse.ArgumentParser,
    fps: str = "the model's, 1 as released",
    max_frames: str = "what the context has room for",
) -> None:
    """Which part of the video is watched, and how densely: the same words in every command."""
    group = parser.add_argument_group("frames")
    group.add_argument(
        "--fps", metavar="F", type=positive, help=f"sampled frames per second (default: {fps})"
    )
    group.add_argument(
        "--frames", metavar="N", type=positive_int, help="so many evenly spaced frames instead"
    )
    group.add_argument(
        "--max-frames",
        metavar="N",
        type=positive_int,
        help=f"of more samples take N evenly spaced ones (default: {max_frames})",
    )
    group.add_argument(
        "--start", metavar="S", type=non_negative, help="begin at S seconds (default: 0)"
    )
    group.add_argument(
        "--end", metavar="S", type=positive, help="end at S seconds (default: the video's end)"
    )


def sampling(arguments: Any) -> dict[str, Any]:
    """What :func:`add_sampling` asked for, by the processor's names.

    Raises:
        InputError: options that contradict each other.
    """
    if arguments.fps is not None and arguments.frames is not None:
        raise InputError("--fps and --frames came together; expected one of them")
    start, end = arguments.start, arguments.end
    if end is not None and end <= (start or 0.0):
        raise InputError(f"--end: got {end:g} s, expected more than --start ({start or 0:g} s)")
    return {
        "fps": arguments.fps,
        "num_frames": arguments.frames,
        "max_frames": arguments.max_frames,
        "start": start,
        "end": end,
    }


def add_generation(parser: argparse.ArgumentParser, tokens: int) -> None:
    group = parser.add_argument_group("answer")
    group.add_argument(
        "--max-new-tokens",
        metavar="N",
        type=positive_int,
        default=tokens,
        help="longest answer in tokens (default: %(default)s)",
    )
    group.add_argument(
        "--temperature",
        metavar="T",
        type=non_negative,
        default=0.0,
        help="0 takes the likeliest token each time, above it samples (default: 0)",
    )
    group.add_argument(
        "--seed", metavar="N", type=int, default=0, help="of the sampling (default: 0)"
    )


def positive_int(text: str) -> int:
    return _number(text, int, lambda n: n >= 1, "a whole number, 1 or more")


def positive(text: str) -> float:
    return _number(text, float, lambda x: math.isfinite(x) and x > 0, "a number above 0")


def non_negative(text: str) -> float:
    return _number(text, float, lambda x: math.isfinite(x) and x >= 0, "a number, 0 or more")


def finite(text: str) -> float:
    return _number(text, float, math.isfinite, "a number")


def _number(text: str, kind: Any, valid: Any, expected: str) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not valid(value):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected {expected}")
    return value


def add_video(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("video", metavar="VIDEO", help="a file; - for the standard input")


def check_media(arguments: Any, question: bool = False) -> None:
    """Open ``arguments.video`` and ``arguments.audio`` (where the command has one), scanned; refuse
    what is no video, or no sound, before a model is loaded.

    Args:
        question: the command reads its questions from the standard input.

    Raises:
        InputError: what is wrong with the files.
    """
    from ..media.audio import has_audio
    from ..media.source import SpooledFile

    audio = getattr(arguments, "audio", None)
    wanted = {"the video": arguments.video == "-", "the sound": audio == "-"}
    uses = [name for name, used in {**wanted, "the questions": question}.items() if used]
    if len(uses) > 1:
        more = "give the question after the video" if question else "give one of them as a file"
        raise InputError(f"the standard input cannot be {' and '.join(uses)} at once; {more}")
    arguments.video = _local(arguments.video, "video").scan()
    start, seconds = getattr(arguments, "start", None), arguments.video.duration
    if start is not None and start >= seconds > 0:
        raise InputError(f"--start: got {start:g} s, but {arguments.video} is {seconds:.2f} s long")
    if audio is not None:
        arguments.audio = _local(audio, "audio")
        named = (
            arguments.audio.named() if isinstance(arguments.audio, SpooledFile) else nullcontext()
        )
        with named:
            if not has_audio(arguments.audio):
                raise InputError(f"--audio: {audio} has no audio track; expected a file with sound")


def _local(name: str, what: str) -> MediaFile:
    """The file of this name; ``-``: what comes on the standard input, in a temporary file."""
    from ..media.source import SpooledFile, local, pieces_of

    if name != "-":
        return local(name, what)
    label = "the standard input"
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None or stream.closed:
        raise InputError(f"{label} is closed; expected the bytes of a file")
    if stream.isatty():
        raise InputError(f"{label} is a terminal; expected the bytes of a file")
    return SpooledFile(label, pieces_of(stream, label))


def check_folder(folder: str | None, expected: str = "a model written by tdc convert") -> None:
    """Refuse a folder that was named and is not there."""
    if folder is not None and not os.path.isdir(folder):
        raise InputError(f"no such folder: {folder}; expected {expected}")


def load(arguments: Any) -> Session:
    """The model that ``--model``, ``--device`` and ``--dtype`` ask for."""
    from .. import session

    with activity("loading the model"):
        return session.load(arguments.model, device=arguments.device, dtype=arguments.dtype)


def watch(arguments: Any, session: Session, question: str, **options: Any) -> WatchedVideo:
    """The video that the arguments name, encoded under two progress bars."""
    with bars() as update:
        return session.watch(
            arguments.video,
            arguments.audio,
            question=question,
            progress=update,
            **options,
        )


def generation_options(arguments: Any) -> dict[str, Any]:
    """Options of ``model.generate`` for ``--max-new-tokens``, ``--temperature``, ``--seed``."""
    import torch

    options: dict[str, Any] = {"max_new_tokens": arguments.max_new_tokens, "do_sample": False}
    if arguments.temperature > 0:
        torch.manual_seed(arguments.seed)
        options |= {"do_sample": True, "temperature": arguments.temperature}
    return options

# SPDX-License-Identifier: Apache-2.0
"""Arguments that several commands share, and their types; imports nothing heavy."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable
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
        "--audio", metavar="FILE", help="sound from another file instead of the video's own track"
    )


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


def check_media(video: str, audio: str | None = None) -> MediaFile:
    """The video, scanned; refuses what is no video, or no sound, before a model is loaded.

    Raises:
        InputError: what is wrong with the file.
    """
    from ..media.audio import has_audio
    from ..media.media_file import MediaFile

    file = MediaFile(video).scan()
    if audio and not has_audio(audio):
        raise InputError(f"--audio: {audio} has no audio track; expected a file with sound")
    return file


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

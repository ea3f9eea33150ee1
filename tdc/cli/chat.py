# SPDX-License-Identifier: Apache-2.0
"""``tdc chat``: ask about a video; the answer appears as it is made."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from ..errors import InputError
from ..media.clock import clock
from .options import (
    Subparsers,
    add_audio,
    add_generation,
    add_model,
    add_sampling,
    add_video,
    check_folder,
    check_media,
    command,
    positive_int,
    sampling,
)
from .terminal import activity, clean, note, one_line


def add(subparsers: Subparsers) -> None:
    parser = command(
        subparsers,
        "chat",
        run,
        "ask about a video",
        "Without a question, every line of the standard input is one, empty ones aside; the video "
        "is encoded once.",
        check=check,
    )
    add_video(parser)
    parser.add_argument("question", metavar="QUESTION", nargs="?")
    add_audio(parser)
    add_sampling(parser)
    parser.add_argument(
        "--lvcot",
        metavar="N",
        type=positive_int,
        help="for very long videos: ask about N segments first and answer from those answers",
    )
    add_generation(parser, tokens=256)
    add_model(parser)


def check(arguments: Any) -> None:
    sampling(arguments)
    check_media(arguments, question=arguments.question is None)
    check_folder(arguments.model)
    if arguments.question is not None and not arguments.question.strip():
        raise InputError("the question is empty; expected a text")
    if arguments.lvcot and arguments.question is None:
        raise InputError("--lvcot needs a question; give it after the video")


def run(arguments: Any) -> int:
    """Answer all questions; the exit code: 2 where one of several was refused."""
    from .options import generation_options, load, watch

    session = load(arguments)
    if session.tiny:
        note(f"note: no --model given: {session.note}")
    frames = {**sampling(arguments), "segments": arguments.lvcot or 1}
    video = watch(arguments, session, arguments.question or "", **frames)
    options = generation_options(arguments)
    if arguments.lvcot:
        options |= {"segments": arguments.lvcot, "on_segment": _show_segment}
    code = 0
    for question in _questions(arguments):
        try:
            with activity("reading") as arrived:
                video.ask(question, streamer=_streamer(session, arrived), **options)
        except InputError as error:
            if arguments.question is not None:
                raise
            note(f"tdc: {one_line(str(error))}")  # one bad question does not end the others
            code = 0 if sys.stdin.isatty() else 2
    return code


def _show_segment(number: int, segment: Any) -> None:
    span = f"{clock(segment.start, tenths=True)} to {clock(segment.end, tenths=True)}"
    note(f"segment {number + 1}, {span}: {one_line(segment.answer)}")


def _questions(arguments: Any) -> Iterator[str]:
    if arguments.question is not None:
        yield arguments.question
        return
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # bytes that are no text lose no question
    if not sys.stdin.isatty():
        yield from filter(None, map(str.strip, iter(sys.stdin.readline, "")))
        return
    import readline  # noqa: F401  (line editing and history for input())

    note("ask about the video; an empty line ends")
    with suppress(EOFError):
        while line := input("> ").strip():
            yield line


def _streamer(session: Any, arrived: Callable[[], None]) -> Any:
    """Prints words as they are complete; calls ``arrived`` before the first one."""
    from transformers import TextStreamer

    class Printer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            if text or stream_end:
                arrived()  # takes the progress line away
            print(clean(text), end="\n" if stream_end else "", flush=True)

    # generate() hands the prompt over first; it is empty, because it was given as embeddings.
    return Printer(session.processor.tokenizer, skip_special_tokens=True)

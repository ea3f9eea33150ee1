# SPDX-License-Identifier: Apache-2.0
"""Rendered prompts that know which of their marks a user typed.

Marks are placeholders of media and the tokenizer's special tokens. Those that the chat template
writes count; one that stands in a message's text is text.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError

from ..errors import InputError

VIDEO_TOKEN, IMAGE_TOKEN = "<video>", "<image>"
MEDIA_TOKENS = (VIDEO_TOKEN, IMAGE_TOKEN)
TEXT, MEDIUM, LITERAL = "text", "medium", "literal"  # kinds of pieces, see split_prompt


class Prompt(str):
    """A rendered prompt; ``typed`` are spans (start, end) in which no mark counts as one."""

    typed: tuple[tuple[int, int], ...]

    def __new__(cls, text: str, typed: tuple[tuple[int, int], ...] = ()) -> Prompt:
        prompt = super().__new__(cls, text)
        prompt.typed = typed
        return prompt

    @classmethod
    def of_user(cls, text: str) -> Prompt:
        """Text in which nothing is a mark."""
        return cls(text, ((0, len(text)),))

    def since(self, start: int) -> Prompt:
        """The prompt from character ``start`` on."""
        typed = ((max(0, a - start), b - start) for a, b in self.typed if b > start)
        return Prompt(self[start:], tuple(typed))


def special_tokens(tokenizer: Any) -> tuple[str, ...]:
    """Texts that a tokenizer takes for control tokens."""
    added = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    return tuple(dict.fromkeys([*added, *tokenizer.all_special_tokens]))


def render(messages: Any, specials: tuple[str, ...], template: Callable[[Any], str]) -> Prompt:
    """Render messages by ``template``.

    The template sees stand-ins that nobody can guess for the marks in the messages, and all else
    as it is, so that what it does to a text (trimming, searching) has the usual outcome.

    Raises:
        InputError: messages that the template refuses or cannot read.
    """
    key, found = secrets.token_hex(8), []

    def stand_in(mark: str) -> str:
        found.append(mark)
        return f"{key}{len(found) - 1:06}"

    try:
        rendered = template(_hidden(messages, specials, stand_in))
    except (TemplateError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"the chat template does not take these messages: {error}") from None
    pieces = re.split(f"{key}([0-9]{{6}})", rendered)
    text, typed = pieces[0], []
    for number, following in zip(pieces[1::2], pieces[2::2], strict=True):
        mark = found[int(number)]
        typed.append((len(text), len(text) + len(mark)))
        text += mark + following
    return Prompt(text, tuple(typed))


def split_prompt(prompt: str, specials: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Pieces of a prompt with their kinds.

    ``TEXT`` is for the tokenizer as it is, special tokens included; ``MEDIUM`` a placeholder;
    ``LITERAL`` a special token's name that is to be spelled out.
    """
    typed = prompt.typed if isinstance(prompt, Prompt) else ()
    done = 0
    for mark in _pattern(specials).finditer(prompt):
        start, stop = mark.span()
        if any(a < stop and start < b for a, b in typed):
            kind = LITERAL if mark[0] in specials else TEXT
        else:
            kind = MEDIUM if mark[0] in MEDIA_TOKENS else TEXT
        if kind != TEXT:
            if done < start:
                yield TEXT, prompt[done:start]
            yield kind, mark[0]
            done = stop
    if done < len(prompt):
        yield TEXT, prompt[done:]


def valid(text: str) -> str:
    """The text with U+FFFD for what is no character, such as the bytes of another encoding in an
    argument of the command line: tokenizers take UTF-8 alone."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


@lru_cache
def _pattern(specials: tuple[str, ...]) -> re.Pattern[str]:
    marks = sorted({*MEDIA_TOKENS, *specials}, key=len, reverse=True)
    return re.compile("|".join(re.escape(mark) for mark in marks))


def _hidden(value: Any, specials: tuple[str, ...], stand_in: Callable[[str], str]) -> Any:
    """Messages with stand-ins for the marks in all their texts."""
    if isinstance(value, str):
        text = _pattern(specials).sub(lambda mark: stand_in(mark[0]), value)
        tail = _unfinished(text, specials)
        return text[: len(text) - tail] + stand_in(text[-tail:]) if tail else text
    if isinstance(value, dict):
        plain = ("role", "type")
        return {k: v if k in plain else _hidden(v, specials, stand_in) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_hidden(item, specials, stand_in) for item in value]
    return value


def _unfinished(text: str, specials: tuple[str, ...]) -> int:
    """Characters at the end that begin a mark, which a next part could finish."""
    marks = (*MEDIA_TOKENS, *specials)
    firsts = {mark[0] for mark in marks}
    for length in range(min(len(text), max(map(len, marks)) - 1), 0, -1):
        if text[-length] in firsts and any(mark.startswith(text[-length:]) for mark in marks):
            return length
    return 0

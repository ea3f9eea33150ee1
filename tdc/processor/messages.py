# SPDX-License-Identifier: Apache-2.0
"""Messages of a conversation: their media and their question; what nobody reads is an error."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import InputError
from .keywords import check_names

_SOURCES = ("path", "url")
_PART_KEYS = {
    "text": ("type", "text"),
    **{kind: ("type", kind, *_SOURCES) for kind in ("video", "image", "audio")},
}


def check_messages(messages: Any, template: str) -> None:
    """Refuse what the template and the processor would pass over in messages.

    Raises:
        InputError: what is no message or no part, and unknown keys or types.
    """
    for message in messages:
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise InputError(f"a message is {message!r:.60}; expected a dict of role and content")
        keys = (key for key in message if not is_named(key, template))
        check_names({key: message[key] for key in keys}, ("role", "content"), "message key")
        for part in _parts(message):
            _check_part(part)


def is_named(name: str, template: str) -> bool:
    """Whether a chat template reads a variable or key of this name."""
    return re.search(rf"\b{re.escape(name)}\b", template) is not None


def _source_of(part: Mapping[str, Any]) -> Any:
    """File or array that a part names.

    Raises:
        InputError: none, or more than one.
    """
    kind = part["type"]
    named = [key for key in (kind, *_SOURCES) if part.get(key) is not None]
    if not named:
        raise InputError(f"a {kind} part names no file; expected a 'path' beside 'type'")
    if len(named) > 1:
        raise InputError(f"a {kind} part names {' and '.join(named)}; expected one of them")
    return part[named[0]]


def _check_part(part: Any) -> None:
    if not isinstance(part, Mapping):
        raise InputError(f"a part is {part!r:.60}; expected a dict with a 'type'")
    kind = str(part.get("type"))
    check_names({kind: True}, tuple(_PART_KEYS), "part type")
    check_names(part, _PART_KEYS[kind], f"key of a {kind} part")
    if kind == "text" and not isinstance(part.get("text"), str):
        raise InputError(f"a text part holds {part.get('text')!r:.40}; expected a text")


def media_of(messages: Sequence[dict]) -> dict[str, list]:
    """``videos``, ``images`` and ``audio`` (one per video, None for its own), in their order.

    Raises:
        InputError: a part without a file, or sound that has no video to itself.
    """
    videos: list = []
    images: list = []
    sounds: dict[int, Any] = {}
    for message in messages:
        for part in _parts(message):
            kind = part["type"]
            if kind == "video":
                videos.append(_source_of(part))
            elif kind == "image":
                images.append(_source_of(part))
            elif kind == "audio":
                place = max(0, len(videos) - 1)
                if place in sounds:
                    raise InputError("a video has two audio parts; expected one at most")
                sounds[place] = _source_of(part)
    if sounds and not videos:
        raise InputError("the messages hold an audio part but no video; expected a video part")
    return {
        "videos": videos,
        "images": images,
        "audio": [sounds.get(i) for i in range(len(videos))],
    }


def last_question(messages: Sequence[dict]) -> str:
    """Text of the last user message."""
    for message in reversed(messages):
        if message["role"] == "user":
            content = message["content"]
            if isinstance(content, str):
                return content
            return "\n".join(part["text"] for part in _parts(message) if part["type"] == "text")
    return ""


def _parts(message: Mapping[str, Any]) -> Sequence[Any]:
    content = message["content"]
    return () if isinstance(content, str) or content is None else content

# SPDX-License-Identifier: Apache-2.0
"""Messages of a conversation in the forms that are in use; what nobody reads is an error."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import InputError, shown
from ..media.source import Base64
from .keywords import check_names
from .media_lists import Clip
from .video_sampling import ALIASES, NAMES, VideoSampling, refuse

_SOURCES = ("path", "url", "base64")
SAMPLING = (*NAMES, *ALIASES)
_KINDS = ("video", "image", "audio")
# Types of parts: what they are, and the keys that name their file.
_TYPES = {
    **{kind: (kind, (kind, *_SOURCES)) for kind in _KINDS},
    **{f"{kind}_url": (kind, (f"{kind}_url",)) for kind in _KINDS},  # as OpenAI's clients write
    "input_audio": ("audio", ("input_audio",)),
}
_ROLE = re.compile(r"\w[\w .-]*")  # nothing that a chat template's marks are made of


@dataclass
class Chat:
    """One conversation.

    Attributes:
        messages: as a chat template takes them; media parts by their type alone.
        parts: kind and part of all media, in their order.
    """

    messages: list[dict[str, Any]] = field(default_factory=list)
    parts: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)

    def media(self) -> dict[str, list]:
        """``videos``, ``images`` and ``audio`` (one per video, None for its own), in their order.

        Raises:
            InputError: a part without a file, or sound that has no video to itself.
        """
        videos: list = []
        images: list = []
        sounds: dict[int, Any] = {}
        for kind, part in self.parts:
            source = source_of(part)
            if kind == "video":
                videos.append(Clip(source, VideoSampling.of(part)))
            elif kind == "image":
                images.append(source)
            else:
                place = max(0, len(videos) - 1)
                if place in sounds:
                    raise InputError("a video has two audio parts; expected one at most")
                sounds[place] = source
        if sounds and not videos:
            raise InputError("the messages hold an audio part but no video; expected a video part")
        return {
            "videos": videos,
            "images": images,
            "audio": [sounds.get(i) for i in range(len(videos))],
        }

    def question(self) -> str:
        """Text of the last user message."""
        for message in reversed(self.messages):
            if message["role"] == "user":
                content = message["content"]
                if isinstance(content, str):
                    return content
                return "\n".join(part["text"] for part in content if part["type"] == "text")
        return ""


def conversations(given: Any) -> tuple[list[Any], bool]:
    """A batch of conversations, and whether it was one alone.

    Raises:
        InputError: what is neither, or a conversation without a message.
    """
    if isinstance(given, Sequence) and not isinstance(given, (str, bytes)) and len(given):
        if isinstance(given[0], Mapping):
            return [given], True
        lists = [isinstance(one, (list, tuple)) and len(one) > 0 for one in given]
        if all(lists):
            return list(given), False
    raise InputError(f"the messages are {shown(given)}; expected a list of role and content")


def read_chat(messages: Sequence[Any], template: str) -> Chat:
    """Read messages, and refuse what the template and the processor would pass over.

    Raises:
        InputError: what is no message or no part, and unknown keys or types.
    """
    chat = Chat()
    for message in messages:
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise InputError(f"a message is {shown(message)}; expected a dict of role and content")
        read = {k for k in message if isinstance(k, str) and is_named(k, template)}
        check_names(
            {k: v for k, v in message.items() if k not in read}, ("role", "content"), "message key"
        )
        role, content = message["role"], message["content"]
        if not isinstance(role, str) or not _ROLE.fullmatch(role):
            raise InputError(f"a role is {shown(role)}; expected 'user', 'assistant' or 'system'")
        if content is not None and not isinstance(content, (str, list, tuple)):
            raise InputError(f"content is {shown(content)}; expected a text or a list of parts")
        if isinstance(content, (list, tuple)):
            content = list(_read_parts(content, chat.parts))
        others = {key: message[key] for key in read if key not in ("role", "content")}
        chat.messages.append({"role": role, "content": content or "", **others})
    return chat


def is_named(name: str, template: str) -> bool:
    """Whether a chat template reads a variable or key of this name."""
    return re.search(rf"\b{re.escape(name)}\b", template) is not None


def kind_of(part: Any) -> str:
    """``"text"`` or the kind of medium of a part whose keys are known.

    Raises:
        InputError: what is no part, and unknown keys or types.
    """
    if not isinstance(part, Mapping):
        raise InputError(f"a part is {shown(part)}; expected a dict with a 'type'")
    name = part.get("type")
    if not isinstance(name, str):
        name = shown(name)
    check_names({name: True}, ("text", *_TYPES), "part type")
    what = f"key of {_part(name)}"
    if name == "text":
        check_names(part, ("type", "text"), what)
        if not isinstance(part.get("text"), str):
            raise InputError(f"a text part holds {shown(part.get('text'))}; expected a text")
        return "text"
    kind, sources = _TYPES[name]
    if kind == "video":
        refuse(part, what)
    check_names(part, ("type", *sources, *(SAMPLING if kind == "video" else ())), what)
    return kind


def source_of(part: Mapping[str, Any]) -> Any:
    """What names or holds the file of a media part.

    Raises:
        InputError: none, or more than one.
    """
    kind, sources = _TYPES[part["type"]]
    named = _named(part)
    if not named:
        example = "'path'" if len(sources) > 1 else repr(sources[0])
        raise InputError(f"{_part(part['type'])} names no file; expected a {example} beside 'type'")
    if len(named) > 1:
        raise InputError(f"{_part(kind)} names {' and '.join(named)}; expected one of them")
    key, value = named[0], part[named[0]]
    if key.endswith("_url") and isinstance(value, Mapping):
        return _nested(value, key, "url", "detail", ("auto",))
    if key == "input_audio":
        value = _nested(value, key, "data", "format", None)
        key = "base64"
    if key == "base64" and isinstance(value, str) and value[:5].lower() != "data:":
        return Base64(value)
    return value


def names_file(part: Mapping[str, Any]) -> bool:
    """Whether a media part names a file at all."""
    return bool(_named(part))


def _named(part: Mapping[str, Any]) -> list[str]:
    return [key for key in _TYPES[part["type"]][1] if part.get(key) is not None]


def _part(name: str) -> str:
    return f"{'an' if name[0] in 'ai' else 'a'} {name} part"


def _nested(value: Any, what: str, key: str, other: str, allowed: tuple | None) -> Any:
    """The file in OpenAI's nested form, ``{"url": ...}`` or ``{"data": ..., "format": ...}``."""
    if not isinstance(value, Mapping):
        raise InputError(f"{what} is {shown(value)}; expected a dict with {key!r}")
    check_names(value, (key, other), f"key of {what}")
    if value.get(key) is None:
        raise InputError(f"{what} is {shown(value)}; expected a dict with {key!r}")
    extra = value.get(other)
    if extra is not None and (not isinstance(extra, str) or (allowed and extra not in allowed)):
        expected = " or ".join(map(repr, allowed or ("wav", "mp3")))
        raise InputError(f"{other} of {what} is {shown(extra)}; expected {expected}")
    return value[key]


def _read_parts(content: Sequence[Any], media: list) -> Iterator[dict[str, Any]]:
    """Parts as a template takes them; those of media are added to ``media`` with their kinds."""
    for part in content:
        kind = kind_of(part)
        if kind == "text":
            yield {"type": "text", "text": part["text"]}
        else:
            media.append((kind, part))
            yield {"type": kind, kind: ""}

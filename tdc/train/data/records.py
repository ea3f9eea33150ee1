# SPDX-License-Identifier: Apache-2.0
"""LLaVA-style JSON lists, read and checked.

    [{"id": "a1", "video": "clips/a1.mp4", "audio": "sound/a1.wav", "conversations": [
        {"from": "human", "value": "<video>\\nWhat happens?"},
        {"from": "gpt", "value": "A dog runs."}]}, ...]

``<image>`` stands for a picture or a video, as in the authors' lists; ``<video>`` does too. Media
paths are relative to a data folder. A record without a medium is text.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from ...errors import InputError, listed
from ...media.source import local
from ...processor.messages import SAMPLING, kind_of, names_file, source_of
from ...processor.video_sampling import WHOLE, VideoSampling, refuse

logger = logging.getLogger(__name__)

PLACEHOLDER = re.compile(r"<(?:image|video)>")
_SOUND = re.compile(r"<audio>\n?")  # sound has no place of its own in the prompt
_ABSENT = ("", "none", "nan")  # how lists made by other tools spell "no medium"


@dataclass(frozen=True)
class Turn:
    """What one side says; ``text`` has no placeholders."""

    role: str  # "user" or "assistant"
    text: str


@dataclass(frozen=True)
class Record:
    """One checked conversation about at most one medium.

    ``visual`` and ``sound`` are paths, arrays or features: what an example brought.
    """

    turns: tuple[Turn, ...]
    visual: Any = None
    kind: str | None = None  # "image" or "video"; None: text alone
    sound: Any = None  # None: the video's own sound track
    sampling: VideoSampling = WHOLE  # which part of a video, and how densely
    media_turn: int = 0  # the turn in front of whose text the medium stands
    name: str = ""  # where it came from, for messages
    number: int = 0  # its place in the dataset


def read_records(
    files: Sequence[str | os.PathLike[str]],
    folder: str | os.PathLike[str] = ".",
    on_bad_record: str = "refuse",
    kinds: Sequence[str | None] = ("image", "video", None),
) -> list[Record]:
    """All good records of JSON lists, in order.

    Args:
        files: JSON files that hold a list, or one JSON object per line (``.jsonl``).
        folder: media paths are relative to it.
        on_bad_record: ``"refuse"`` raises on the first file with bad records and names them;
            ``"skip"`` leaves them out with one warning for all.
        kinds: kinds of media that the stage takes; a record with another one is bad.

    Raises:
        InputError: no such file, no JSON list, bad records, or no good one.
    """
    records: list[Record] = []
    bad: list[str] = []
    for file in files:
        for number, entry in _entries(Path(file)):
            name = _name(file, number, entry)
            try:
                record = parse(entry, folder, name)
                _check_kind(record, kinds)
                _check_files(record)
                records.append(replace(record, number=len(records)))
            except InputError as error:
                bad.append(f"{name}: {error}")
    faults = listed(bad, 3, "; ")
    if bad and on_bad_record == "refuse":
        raise InputError(
            f"{faults}; correct the list, or leave such records out with on_bad_record: skip"
        )
    if bad:
        logger.warning("%d of %d records left out: %s", len(bad), len(bad) + len(records), faults)
    if not records:
        raise InputError(f"no records in {', '.join(map(str, files)) or 'data (it names no file)'}")
    return records


def parse(entry: Any, folder: str | os.PathLike[str] | None = None, name: str = "") -> Record:
    """A record from one entry of a list, or from an example of any dataset.

    An entry holds ``conversations`` (from human/gpt), ``messages`` (role user/assistant) or
    ``question`` and ``answer``, and at most one of ``image`` and ``video``; ``audio`` beside a
    video replaces its sound track, and ``audio: false`` mutes it. ``fps``, ``num_frames``,
    ``max_frames``, ``start`` and ``end`` beside a video are as for the processor. All of them may
    stand in the parts of ``messages`` instead.

    Raises:
        InputError: what is wrong with it.
    """
    if not isinstance(entry, dict):
        raise InputError(f"it is a {type(entry).__name__}; expected an object with conversations")
    entry = _with_parts(entry)
    media = {k: entry[k] for k in ("image", "video", "audio") if _present(entry.get(k))}
    if "image" in media and "video" in media:
        raise InputError("it names an image and a video; expected one of them")
    kind = next((k for k in ("image", "video") if k in media), None)
    if "audio" in media and kind != "video":
        raise InputError("it has audio but no video; expected a video beside it")
    if kind == "video":
        refuse(entry, "key")
    raw = _raw_turns(entry)
    turns, place = [], []
    for number, (role, text) in enumerate(raw):
        if role == "user":  # an answer may speak of "<image>"
            place += [number] * len(PLACEHOLDER.findall(text))
            text = PLACEHOLDER.sub("", _SOUND.sub("", text))
        turns.append(Turn(role, text.strip()))
    _check_turns(turns)
    _check_placeholders(kind, len(place))
    return Record(
        turns=tuple(turns),
        visual=None if kind is None else _resolve(media[kind], folder),
        kind=kind,
        sound=_resolve(media["audio"], folder) if "audio" in media else entry.get("audio"),
        sampling=VideoSampling.of(entry) if kind == "video" else WHOLE,
        media_turn=place[0] if place else 0,
        name=name,
    )


def _with_parts(entry: dict[str, Any]) -> dict[str, Any]:
    """The entry with what the media parts of its messages say beside them."""
    found: dict[str, Any] = {}
    messages = entry.get("messages")
    for turn in messages if isinstance(messages, list) else ():
        content = turn.get("content") if isinstance(turn, dict) else None
        for part in content if isinstance(content, list) else ():
            kind = kind_of(part)
            if kind == "text":
                continue
            said = {name: value for name, value in part.items() if name in SAMPLING}
            if names_file(part):
                said[kind] = source_of(part)
            for name, value in said.items():
                if value is not None and (name in found or _present(entry.get(name))):
                    raise InputError(f"it names {name} twice; expected it once")
                found[name] = value
    return {**entry, **found}


def _present(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip().lower() not in _ABSENT
    if isinstance(value, float):  # NaN, from a table
        return value == value
    return value is not None and value is not False


def _raw_turns(entry: dict[str, Any]) -> list[tuple[str, str]]:
    """(role, text) of all turns; text may hold placeholders."""
    if "conversations" in entry:
        names, turns = {"human": "user", "gpt": "assistant", "system": "system"}, []
        for turn in _list(entry, "conversations"):
            role = turn.get("from") if isinstance(turn, dict) else None
            if role not in names:
                raise InputError(f"a turn is from {role!r}; expected 'human' or 'gpt'")
            turns.append((names[role], _text(turn, "value")))
        return turns
    if "messages" in entry:
        turns = []
        for turn in _list(entry, "messages"):
            role = turn.get("role") if isinstance(turn, dict) else None
            if role not in ("user", "assistant", "system"):
                raise InputError(f"a message has role {role!r}; expected 'user' or 'assistant'")
            turns.append((role, _text(turn, "content")))
        return turns
    if "question" in entry and "answer" in entry:
        visual = "<video>" if _present(entry.get("video")) else "<image>"
        mark = f"{visual}\n" if {"image", "video"} & entry.keys() else ""
        mark = "" if PLACEHOLDER.search(_text(entry, "question")) else mark
        return [
            ("user", mark + _text(entry, "question")),
            ("assistant", _text(entry, "answer")),
        ]
    raise InputError("it has no conversations; expected a list of human and gpt turns")


def _list(entry: dict[str, Any], key: str) -> list[Any]:
    if not isinstance(entry[key], list) or not entry[key]:
        raise InputError(f"{key} is {entry[key]!r:.40}; expected a list of turns")
    return entry[key]


def _text(turn: dict[str, Any], key: str) -> str:
    value = turn.get(key)
    if isinstance(value, list):  # parts of a message
        words = []
        for part in value:
            kind = kind_of(part)
            if kind == "text":
                words.append(part["text"])
            elif kind in ("image", "video"):  # sound has no place of its own in the prompt
                words.append(f"<{kind}>")
        value = "\n".join(words)
    if not isinstance(value, str):
        raise InputError(f"a turn's {key} is {value!r:.40}; expected text")
    return value


def _check_turns(turns: Sequence[Turn]) -> None:
    spoken = [turn for turn in turns if turn.role != "system"]
    if any(turn.role == "system" for turn in turns[1:]):
        raise InputError("a system turn comes later than first; expected it in front")
    if not any(turn.role == "assistant" for turn in turns):
        raise InputError("it has no gpt turn, so there is nothing to learn; expected an answer")
    for number, turn in enumerate(spoken):
        expected = ("user", "assistant")[number % 2]
        if turn.role != expected:
            who = {"user": "human", "assistant": "gpt"}
            raise InputError(
                f"turn {number + 1} is from {who[turn.role]}; expected human and gpt in turns, "
                "human first"
            )
    if any(turn.role == "assistant" and not turn.text for turn in turns):
        raise InputError("an answer is empty; expected text")


def _check_placeholders(kind: str | None, count: int) -> None:
    if kind is None and count:
        raise InputError("it has a placeholder but names no image or video; expected its path")
    if kind is not None and count != 1:
        raise InputError(
            f"it has {count} placeholders in its human turns for one {kind}; expected one <image> "
            "or <video>"
        )


def _check_kind(record: Record, kinds: Sequence[str | None]) -> None:
    if record.kind not in kinds:
        wanted = " or ".join(k or "text" for k in kinds)
        raise InputError(f"it has a {record.kind or 'text'}; this stage takes {wanted}")


def _check_files(record: Record) -> None:
    for path in (record.visual, record.sound):
        named = isinstance(path, (str, os.PathLike)) and str(path)[:5].lower() != "data:"
        if named and not os.path.isfile(path):
            raise InputError(f"no such file: {path}")


def _resolve(value: Any, folder: str | os.PathLike[str] | None) -> Any:
    """A path relative to the folder; a `data:` URL as it is.

    Raises:
        InputError: an address on a network.
    """
    if not isinstance(value, str) or value[:5].lower() == "data:":
        return value
    path = os.fspath(local(value, "the medium"))
    return path if folder is None else os.path.join(folder, path)


def _entries(file: Path) -> Iterator[tuple[int, Any]]:
    """Entries of a list with their index; of JSON lines with their line number."""
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{file} is not text in UTF-8; expected a JSON list") from None
    if file.suffix == ".jsonl":
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                yield number, _json_line(line)
        return
    try:
        entries = json.loads(text)
    except ValueError as error:
        raise InputError(f"{file} is not JSON: {error}") from None
    if not isinstance(entries, list):
        raise InputError(
            f"{file} holds a JSON {type(entries).__name__}; expected a list of records"
        )
    yield from enumerate(entries)


def _json_line(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return "no JSON"  # parse() says that it is no object


def _name(file: str | os.PathLike[str], number: int, entry: Any) -> str:
    given = entry.get("id") if isinstance(entry, dict) else None
    return f"{file}[{number}]" + (f" (id {given})" if given is not None else "")


class RecordDataset(Dataset):
    """Records of LLaVA-style lists; arguments and errors: :func:`read_records`.

    Any other torch dataset does as well: the collator takes whatever examples it gives (see
    :func:`parse`), tower features instead of files included.
    """

    def __init__(
        self,
        files: Sequence[str | os.PathLike[str]],
        folder: str | os.PathLike[str] = ".",
        on_bad_record: str = "refuse",
        kinds: Sequence[str | None] = ("image", "video", None),
    ) -> None:
        self.records = read_records(files, folder, on_bad_record, kinds)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        return self.records[index]

    def after(self, record: Record) -> Record:
        """The next record, for one whose medium turns out to be unreadable."""
        return self.records[(record.number + 1) % len(self.records)]

# SPDX-License-Identifier: Apache-2.0
"""Data sets on disk: clips, and a list of conversations in LLaVA's format, the authors'.

```
OUT/world.json          settings of the set
OUT/clips/000012.mp4    (images/000012.png for kind "image")
OUT/test.json           [{"id", "video" | "image", "conversations", ...}, ...], last of all
```
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from tdc.errors import InputError
from tdc.files import whole_file

from .captions import CLIP_PROMPT, clip_caption
from .clips import Clip
from .make import make_clip
from .questions import Question, ask
from .write import check_size, write_clip, write_image

_SETTINGS = "world.json"
_VERSION = 1  # of the mapping from seeds to clips, questions, pictures


def write_dataset(
    out: str | os.PathLike[str],
    *,
    clips: int,
    split: str = "train",
    seed: int = 0,
    kind: str = "standard",
    size: int = 64,
    fps: int = 8,
    questions: int = 4,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a set of one kind and split; returns the path of its list.

    An interrupted set continues where it stopped, and a larger `clips` extends it. The list appears
    when all clips are there. The same arguments give the same list and the same pictures.

    Args:
        out: a new or empty folder, or one with a set of the same settings.
        clips, split, seed, kind: clips 0 to clips - 1, see `make_clip`.
        size, fps: of the files, see `write_clip`.
        questions: conversations per clip, half of them multiple choice. The training split has a
            caption per clip in addition.
        progress: called as progress(done, total) after every clip.

    Raises:
        InputError: an argument out of range, a folder that holds something else.
    """
    for name, number in (("clips", clips), ("questions", questions)):
        if number < 1:
            raise InputError(f"{name}: got {number}, expected 1 or more")
    check_size(size, fps)
    make_clip(seed, 0, kind=kind, split=split)  # refuses a kind or split before a folder is made
    settings = {"version": _VERSION, "split": split, "seed": seed, "kind": kind, "size": size}
    folder = _prepare(Path(out), settings | {"fps": fps}, image=kind == "image")
    entries: list[dict[str, Any]] = []
    for index in range(clips):
        clip = make_clip(seed, index, kind=kind, split=split)
        name = _medium_name(clip)
        if not (folder / name).exists():
            if kind == "image":
                write_image(folder / name, clip, size=size)
            else:
                write_clip(folder / name, clip, size=size, fps=fps)
        entries += _entries(clip, name, questions)
        if progress is not None:
            progress(index + 1, clips)
    target = folder / f"{split}.json"
    with whole_file(target) as temporary:
        temporary.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    return target


def _prepare(folder: Path, settings: dict[str, Any], image: bool) -> Path:
    """Make the folder, or refuse one that holds anything but a set of these settings."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        holds = os.listdir(folder)
    except OSError as error:
        raise InputError(f"{folder}: cannot make this folder ({error.strerror})") from None
    note = folder / _SETTINGS
    if _SETTINGS in holds:
        try:
            before = json.loads(note.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise InputError(
                f"{note} cannot be read; expected one written by python -m tiny.world"
            ) from None
        if before != settings:
            raise InputError(
                f"{folder} holds a set of other settings ({json.dumps(before)}); "
                "expected a new folder or the same settings"
            )
    elif holds:
        raise InputError(f"{folder} is not empty and holds no set; expected a new folder")
    else:
        with whole_file(note) as temporary:
            temporary.write_text(json.dumps(settings) + "\n", encoding="utf-8")
    try:
        (folder / ("images" if image else "clips")).mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write in {folder}: {error.strerror}") from None
    return folder


def _medium_name(clip: Clip) -> str:
    return f"images/{clip.index:06d}.png" if clip.kind == "image" else f"clips/{clip.index:06d}.mp4"


def _entries(clip: Clip, name: str, count: int) -> Iterator[dict[str, Any]]:
    """A clip's conversations; fields beyond LLaVA's describe question and answer."""
    rng = Random(f"{clip.name}/form")
    medium = {"image" if clip.kind == "image" else "video": name}
    fixed = {"boundaries": list(clip.cuts)}
    for number, question in enumerate(ask(clip, count)):
        form = rng.choice(("choice", "open"))
        text, answer = _said(question, form)
        yield {
            "id": f"{clip.index:06d}-{number}",
            **medium,
            "conversations": _conversation(text, answer),
            "kind": question.kind,
            "needs": list(question.needs),
            "form": form,
            "answer": question.answer,
            "options": list(question.options),
            **fixed,
        }
    if clip.split == "train":
        yield {
            "id": f"{clip.index:06d}-caption",
            **medium,
            "conversations": _conversation(CLIP_PROMPT, clip_caption(clip)),
            "kind": "caption",
            "needs": [],
            "form": "open",
            "answer": clip_caption(clip),
            "options": [],
            **fixed,
        }


def _said(question: Question, form: str) -> tuple[str, str]:
    if form == "choice":
        return question.choice, question.letter
    return question.text, question.answer


def _conversation(text: str, answer: str) -> list[dict[str, str]]:
    # As in the released data, <image> is the placeholder of videos too.
    return [
        {"from": "human", "value": f"<image>\n{text}"},
        {"from": "gpt", "value": answer},
    ]

# SPDX-License-Identifier: Apache-2.0
"""Which files are opened, and how often their packets are read."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import pytest


@dataclass
class FilePasses:
    """``opened``: file names; ``read``: (file name, "video" or "audio") of every pass."""

    opened: list[str] = field(default_factory=list)
    read: list[tuple[str, str]] = field(default_factory=list)


class _Container:
    def __init__(self, container: Any, name: str, passes: FilePasses) -> None:
        self._container, self._name, self._passes = container, name, passes

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._container, attribute)

    def __enter__(self) -> _Container:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def demux(self, stream: Any) -> Any:
        self._passes.read.append((self._name, stream.type))
        return self._container.demux(stream)

    def decode(self, stream: Any) -> Any:
        self._passes.read.append((self._name, stream.type))
        return self._container.decode(stream)


def watch_files(monkeypatch: pytest.MonkeyPatch) -> FilePasses:
    """From now on, everything that PyAV opens is counted."""
    passes, original = FilePasses(), av.open

    def opened(file: str, *arguments: Any, **options: Any) -> _Container:
        name = Path(file).name
        passes.opened.append(name)
        return _Container(original(file, *arguments, **options), name, passes)

    monkeypatch.setattr(av, "open", opened)
    return passes

# SPDX-License-Identifier: Apache-2.0
"""Whatever names or holds a media file's bytes -> a local file.

Paths stay as they are. Bytes, file objects, base64 and `data:` URLs go into a temporary file, which
FFmpeg can seek in (the index of an MP4 may stand at its end) and which ends with its object.
"""

from __future__ import annotations

import binascii
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from ..errors import InputError, shown
from .container import check_address
from .media_file import MediaFile

MOST_BYTES = 2**34  # 16 GiB in a temporary file
_LONGEST_PATH = 4096  # characters
_STEP = 2**20  # characters of base64 or bytes at a time
_BASE64_TEXT = re.compile(r"[A-Za-z0-9+/\s]+[=\s]*")
_BASE64 = re.compile("[A-Za-z0-9+/]*")
_BASE64_TABLE = str.maketrans("-_", "+/", " \t\r\n\f\v")


@dataclass(frozen=True)
class Base64:
    """A media file's bytes as base64 text."""

    text: str


class SpooledFile(MediaFile):
    """A media file that exists as long as this object is open; it cannot be pickled.

    Messages name it by `label`.
    """

    def __init__(
        self, label: str, pieces: Iterable[bytes | bytearray], most: int = MOST_BYTES
    ) -> None:
        self.label = label
        self._file: IO[bytes]
        if os.path.isdir("/proc/self/fd"):  # without a name: even a kill leaves nothing behind
            self._file = tempfile.TemporaryFile()  # noqa: SIM115
            super().__init__(f"/proc/self/fd/{self._file.fileno()}")
        else:
            self._file = tempfile.NamedTemporaryFile()  # noqa: SIM115
            super().__init__(self._file.name)
        try:
            self._fill(pieces, most)
        except BaseException:
            self.close()
            raise

    def _fill(self, pieces: Iterable[bytes | bytearray], most: int) -> None:
        size = 0
        try:
            for piece in pieces:
                size += len(piece)
                if size > most:
                    raise InputError(
                        f"{self.label} is longer than {most:,} bytes; give it as a file"
                    )
                self._file.write(piece)
            self._file.flush()
        except OSError as error:
            folder, why = tempfile.gettempdir(), error.strerror or error
            raise InputError(f"{self.label} cannot be kept in {folder}: {why}") from None

    def __str__(self) -> str:
        return self.label

    def __repr__(self) -> str:
        return f"SpooledFile({self.label!r})"

    def scan(self) -> MediaFile:
        with self.named():
            return super().scan()

    @contextmanager
    def named(self) -> Iterator[None]:
        """Errors name the label in place of the path."""
        try:
            yield
        except InputError as error:
            raise InputError(str(error).replace(self.path, self.label)) from None

    def close(self) -> None:
        """The file is gone."""
        self._file.close()


@contextmanager
def opened(source: Any, what: str) -> Iterator[Any]:
    """:func:`local` for as long as the block runs; what it made is gone afterwards."""
    found = local(source, what)
    if not isinstance(found, SpooledFile):
        yield found
        return
    try:
        with found.named():
            yield found
    finally:
        if found is not source:
            found.close()


def local(source: Any, what: str) -> Any:
    """A `MediaFile` for what names or holds a file; anything else (arrays) as it is.

    Args:
        source: a path, a `file://` or `data:` URL, base64 (`Base64`, or a text of at least 100
            characters that cannot be a path), bytes, a binary file object (read from its beginning
            where it can be rewound, put back to its place, and not closed), or a dict with `bytes`
            or `path`, as data sets have it.
        what: "video", "image" or "audio", for the messages.

    Raises:
        InputError: an address on a network, bytes that are no base64, a file object of text.
    """
    label = f"the given {what}"
    if isinstance(source, MediaFile):
        return source
    if isinstance(source, dict) and source.keys() <= {"bytes", "path"}:
        named = source.get("bytes") if source.get("bytes") is not None else source.get("path")
        if named is None or isinstance(named, dict):
            raise InputError(f"{what} is {shown(source)}; expected a dict with bytes or path")
        return local(named, what)
    if isinstance(source, Base64):
        return SpooledFile(label, _base64(source.text, 0, what))
    if isinstance(source, (bytes, bytearray, memoryview)):
        whole = source.tobytes() if isinstance(source, memoryview) else source
        return SpooledFile(label, (whole,))
    if isinstance(source, str):
        if source[:5].lower() == "data:":
            return SpooledFile(label, _data_url(source, what))
        if _is_base64(source):
            return SpooledFile(label, _base64(source, 0, what))
        return MediaFile(_path(source, what))
    if isinstance(source, os.PathLike):
        name = os.fspath(source)
        return MediaFile(os.fsdecode(name))
    if callable(getattr(source, "read", None)):
        return _of_file_object(source, label)
    return source


def _is_base64(text: str) -> bool:
    """Whether a text is base64 rather than a path: neither dots nor dashes, and no such file."""
    if len(text) < 100 or (text[0] == "/" and text[:4] != "/9j/"):  # how a JPEG begins
        return False
    known = len(text) <= _LONGEST_PATH and os.path.exists(text)
    return not known and _BASE64_TEXT.fullmatch(text) is not None


def _path(text: str, what: str) -> str:
    """The path that a text names; a `file://` URL is one as well."""
    if text[:5].lower() == "file:" and not os.path.exists(text):
        try:
            host = urlsplit(text).netloc
        except ValueError:
            host = "?"
        if host.lower() not in ("", "localhost"):
            raise InputError(f"{shown(text)}: expected file:///path, a file of this machine")
        # A "?" or "#" of a name should have been escaped; it is no query of a file.
        rest = text[5:]
        if rest.startswith("//"):
            rest = rest[2 + len(host) :]
        return unquote(rest, errors="surrogateescape")
    check_address(text)
    if len(text) > _LONGEST_PATH:
        raise InputError(
            f"{what} {shown(text)} is no path; base64 goes into a URL, data:{what}/...;base64,..."
        )
    return text


def _data_url(url: str, what: str) -> Iterator[bytes]:
    """Bytes of `data:[type][;base64],...` (RFC 2397)."""
    comma = url.find(",", 0, 1024)
    if comma < 0:
        raise InputError(f"{what} {shown(url)}: expected data:{what}/...;base64,...")
    if re.search(r";\s*base64\s*$", url[:comma], re.IGNORECASE):
        yield from _base64(url, comma + 1, what)
        return
    try:
        yield unquote_to_bytes(url[comma + 1 :])
    except UnicodeEncodeError:
        raise InputError(f"{what} {shown(url)}: expected percent-encoded bytes") from None


def _base64(text: str, start: int, what: str) -> Iterator[bytes]:
    """Decode from character `start` on, a piece at a time; padding may be absent."""
    if "%" in text:  # "+", "/" and "=" may be escaped in a URL
        text, start = unquote(text[start:]), 0
    rest = ""
    for first in range(start, len(text), _STEP):
        piece = rest + text[first : first + _STEP].translate(_BASE64_TABLE)
        last = first + _STEP >= len(text)
        whole = len(piece) if last else len(piece) // 4 * 4
        piece, rest = piece[:whole], piece[whole:]
        digits = piece.rstrip("=") if last else piece
        if not _BASE64.fullmatch(digits) or len(digits) % 4 == 1:
            raise InputError(f"{what}: {shown(text[start : start + 99])} is no base64")
        yield binascii.a2b_base64(digits + "=" * (-len(digits) % 4))


def _of_file_object(file: Any, label: str) -> SpooledFile:
    try:
        back = file.tell() if file.seekable() else None
        if back is not None:
            file.seek(0)
    except (AttributeError, OSError):  # a pipe, or a response of a network library
        back = None
    except ValueError as error:
        raise InputError(f"{label} cannot be read: {error}") from None
    try:
        return SpooledFile(label, pieces_of(file, label))
    finally:
        if back is not None:
            file.seek(back)


def pieces_of(file: Any, label: str) -> Iterator[bytes]:
    """What a binary file object still holds; `label` is its name in messages."""
    while True:
        try:
            piece = file.read(_STEP)
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{label} cannot be read: {error}") from None
        if not piece:
            return
        if not isinstance(piece, (bytes, bytearray, memoryview)):
            raise InputError(f"{label} comes as text; open the file in binary mode ('rb')")
        yield bytes(piece)

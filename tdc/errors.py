# SPDX-License-Identifier: Apache-2.0
"""The one exception for input that a person can correct, and what its message is made of."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any


class InputError(ValueError):
    """Bad input from outside: a file, a checkpoint, a question.

    The message is one line: what is wrong and what would be right. The command line prints it and
    exits with code 2; library users catch it as a ``ValueError``.
    """

    def __init__(self, message: object) -> None:
        super().__init__(" ".join(str(message).splitlines()))  # names of files may hold anything


def listed(names: Sequence[str], most: int = 8, separator: str = ", ") -> str:
    """The first names and the number of the others: "a, b, and 7 more"."""
    more = [f"and {len(names) - most} more"] if len(names) > most else []
    return separator.join([*names[:most], *more])


def shown(value: Any, most: int = 60) -> str:
    """A value as a message shows it: one line, short, however large or deep it is."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"{len(value):,} bytes"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"an array {value.dtype} {list(value.shape)}"
    text = " ".join(_REPR.repr(value).split())
    return text if len(text) <= most else f"{text[: most - 3]}..."


_REPR = reprlib.Repr()
_REPR.maxstring = 60

# SPDX-License-Identifier: Apache-2.0
"""The one exception for input that a person can correct, and lists for its message."""

from __future__ import annotations

from collections.abc import Sequence


class InputError(ValueError):
    """Bad input from outside: a file, a checkpoint, a question.

    The message is one line: what is wrong and what would be right. The command line prints it and
    exits with code 2; library users catch it as a ``ValueError``.
    """


def listed(names: Sequence[str], most: int = 8, separator: str = ", ") -> str:
    """The first names and the number of the others: "a, b, and 7 more"."""
    more = [f"and {len(names) - most} more"] if len(names) > most else []
    return separator.join([*names[:most], *more])

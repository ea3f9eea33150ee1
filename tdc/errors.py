# SPDX-License-Identifier: Apache-2.0
"""The one exception for input that a person can correct."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input from outside: a file, a checkpoint, a question.

    The message is one line: what is wrong and what would be right. The command line prints it and
    exits with code 2; library users catch it as a ``ValueError``.
    """

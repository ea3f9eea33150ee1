# SPDX-License-Identifier: Apache-2.0
"""Times as people write them."""

from __future__ import annotations


def clock(seconds: float, tenths: bool | None = None) -> str:
    """``83.4 -> "1:23.4"``, ``3683 -> "1:01:23"``.

    Args:
        tenths: True: always shown; False: never, rounded down; None: shown unless they are 0.
    """
    count = int(seconds) * 10 if tenths is False else round(seconds * 10)
    minutes, rest = divmod(count, 600)
    hours, minutes = divmod(minutes, 60)
    second = f"{rest // 10:02d}"
    if tenths or (tenths is None and rest % 10):
        second += f".{rest % 10}"
    return f"{hours}:{minutes:02d}:{second}" if hours else f"{minutes}:{second}"

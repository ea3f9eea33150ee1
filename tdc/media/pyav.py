# SPDX-License-Identifier: Apache-2.0
"""PyAV, imported when the first file is opened: the model itself runs without it."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    import av

    return getattr(av, name)

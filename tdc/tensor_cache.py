# SPDX-License-Identifier: Apache-2.0
"""What is computed once from weights or a video's tokens, and again when those have changed."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

T = TypeVar("T")


@dataclass
class _Entry:
    sources: list[weakref.ref[Tensor]]
    stamp: tuple[Hashable, ...]
    value: Any


class Prepared:
    """Values by name, each good for as long as the tensors it came from are what they were.

    Noticed are other tensors, in-place changes (an optimizer's step, ``load_state_dict``) and moves
    to another dtype or device; not noticed are writes through ``.data``, after which ``clear`` must
    be called. The tensors are not kept alive. A copy or a pickle starts empty.
    """

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}

    def get(
        self,
        name: str,
        sources: Sequence[Tensor],
        compute: Callable[[], T],
        key: Hashable = None,
    ) -> T:
        """``compute()``, or what it returned for the same sources and the same ``key``."""
        stamp = (key, *map(_stamp, sources))
        entry = self._entries.get(name)
        if entry is not None and entry.stamp == stamp:
            alive = (ref() is x for ref, x in zip(entry.sources, sources, strict=True))
            if all(alive):
                return entry.value
        self._entries.pop(name, None)  # before the new value takes memory
        value = compute()
        self._entries[name] = _Entry([weakref.ref(x) for x in sources], stamp, value)
        return value

    def clear(self) -> None:
        self._entries.clear()

    def __deepcopy__(self, memo: dict[int, Any]) -> Prepared:
        return Prepared()

    def __reduce__(self) -> tuple[type[Prepared], tuple[()]]:
        return Prepared, ()


def _stamp(x: Tensor) -> tuple[Hashable, ...]:
    version = -1 if x.is_inference() else x._version  # inference tensors count no versions
    return x.data_ptr(), version, x.dtype, x.device, x.shape

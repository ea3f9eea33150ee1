# SPDX-License-Identifier: Apache-2.0
"""Cache of derived tensors, invalidated when their sources change."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


@dataclass
class _Entry:
    sources: list[weakref.ref[Tensor]]
    stamp: tuple[Hashable, ...]
    value: Any
    inference: bool  # made in inference mode, of no use for a gradient


class TensorCache:
    """Values by name, each valid while the tensors it came from are what they were.

    A value that wants a gradient is computed anew every time. Noticed are other tensors, in-place
    changes (an optimizer's step, ``load_state_dict``) and moves to another dtype or device; not
    noticed are writes through ``.data``, after which ``clear`` must be called. The tensors are not
    kept alive. A copy or a pickle starts empty.
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
        grad = torch.is_grad_enabled()
        if grad and any(x.requires_grad for x in sources):
            return compute()
        stamp = (key, *map(_stamp, sources))
        entry = self._entries.get(name)
        if entry is not None and entry.stamp == stamp and not (grad and entry.inference):
            alive = (ref() is x for ref, x in zip(entry.sources, sources, strict=True))
            if all(alive):
                return entry.value
        self._entries.pop(name, None)  # before the new value takes memory
        value = compute()
        inference = torch.is_inference_mode_enabled()
        self._entries[name] = _Entry([weakref.ref(x) for x in sources], stamp, value, inference)
        return value

    def clear(self) -> None:
        self._entries.clear()

    def __deepcopy__(self, memo: dict[int, Any]) -> TensorCache:
        return TensorCache()

    def __reduce__(self) -> tuple[type[TensorCache], tuple[()]]:
        return TensorCache, ()


def _stamp(x: Tensor) -> tuple[Hashable, ...]:
    version = -1 if x.is_inference() else x._version  # inference tensors count no versions
    return x.data_ptr(), version, x.dtype, x.device, x.shape

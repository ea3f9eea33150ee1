# SPDX-License-Identifier: Apache-2.0
"""Autocast for the ops that are matrix products: their public functions cast, then switch it off,
so that every backend sees the dtypes it computes in and none has an autocast rule of its own."""

from __future__ import annotations

import torch


def autocast_dtype(device: str) -> torch.dtype | None:
    """The dtype autocast asks for on this kind of device; None where it is off."""
    if device == "meta" or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def without_autocast(device: str) -> torch.autocast:
    """A context in which autocast is off."""
    return torch.autocast(device, enabled=False)

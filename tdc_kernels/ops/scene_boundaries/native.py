# SPDX-License-Identifier: Apache-2.0
"""Scene boundaries in C++ (csrc/scene_boundaries/cpu.cpp): what it needs, its output's shape."""

from __future__ import annotations

import torch

from tdc_kernels import native


def requires(device: str) -> str | None:
    if device != "cpu":
        return f"runs on the CPU only, not on {device!r}"
    return native.why_not()


def fake(
    similarity: torch.Tensor,
    num_boundaries: int,
    cu_frames: torch.Tensor | None = None,
    threshold: float | None = None,
) -> torch.Tensor:
    videos = 1 if cu_frames is None else cu_frames.shape[0] - 1
    return similarity.new_empty((videos, num_boundaries), dtype=torch.int32)

# SPDX-License-Identifier: Apache-2.0
"""``scene_boundaries`` against the authors' full sort: microseconds, all of them overhead."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

import tdc_kernels as tk

from ..benchmark import LONG, PAPER, RAGGED, SMALL, Case, Cost, Op, normal, prefix_sums
from ..peers import eager_ops, release_ops


def arguments(case: Case, device: str) -> tuple[Any, ...]:
    similarity = normal((case.frames - 1,), torch.float32, device, seed=2)
    return similarity, case.boundaries, prefix_sums(case, device)


def peers(case: Case) -> Mapping[str, Callable[..., Any]]:
    def release(similarity: Tensor, boundaries: int, _: Tensor | None) -> Tensor:
        return release_ops.scene_boundaries(similarity, boundaries, case.cu_frames)

    def eager(similarity: Tensor, boundaries: int, cu_frames: Tensor | None) -> Tensor:
        return eager_ops.scene_boundaries(similarity, boundaries, cu_frames, max(case.lengths))

    return {"release": release, "eager": eager}


def cost(case: Case) -> Cost:
    """Every similarity read, every boundary written; comparisons are not counted."""
    return Cost(4 * (case.frames - 1), 4 * len(case.lengths) * case.boundaries, 0)


SIZES = {"paper": PAPER, "small": SMALL, "ragged": RAGGED, "long": LONG}

BENCHMARK = Op(
    name="scene_boundaries",
    cases=tuple(Case(name, lengths, 1, 1) for name, lengths in SIZES.items()),
    arguments=arguments,
    ours=tk.scene_boundaries,
    peers=peers,
    cost=cost,
)

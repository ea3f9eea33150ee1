# SPDX-License-Identifier: Apache-2.0
"""``segment_scenes`` against the authors' loop over windows of 64 pairs and their full sort."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

import tdc_kernels as tk

from ..benchmark import Case, Cost, Op, prefix_sums, standard_cases, video
from ..peers import eager_ops, release_ops
from . import frame_similarity, scene_boundaries


def arguments(case: Case, device: str) -> tuple[Any, ...]:
    return video(case, device), case.boundaries, prefix_sums(case, device)


def peers(case: Case) -> Mapping[str, Callable[..., Any]]:
    longest = max(case.lengths)

    def release(features: Tensor, boundaries: int, _: Tensor | None) -> tuple[Tensor, Tensor]:
        return release_ops.segment_scenes(features, boundaries, case.cu_frames)

    def eager(x: Tensor, boundaries: int, cu_frames: Tensor | None) -> tuple[Tensor, Tensor]:
        return eager_ops.segment_scenes(x, boundaries, cu_frames, longest)

    def fusible(x: Tensor, boundaries: int, cu_frames: Tensor | None) -> tuple[Tensor, Tensor]:
        return eager_ops.segment_scenes_fusible(x, boundaries, cu_frames, longest)

    return {"release": release, "eager": eager, "compile": fusible}


def cost(case: Case) -> Cost:
    """Those of ``frame_similarity``, and the boundaries written."""
    similarity = frame_similarity.cost(case)
    boundaries = scene_boundaries.cost(case).written
    return Cost(similarity.read, similarity.written + boundaries, similarity.flops)


def expected(features: Tensor, boundaries: int, cu_frames: Tensor | None) -> tuple[Tensor, Tensor]:
    similarity = frame_similarity.expected(features, cu_frames)
    chosen = tk.scene_boundaries(similarity, boundaries, cu_frames, backend="reference")
    return chosen, similarity


BENCHMARK = Op(
    name="segment_scenes",
    cases=standard_cases(576, 1536, backward=False),  # the gradient is frame_similarity's
    arguments=arguments,
    ours=tk.segment_scenes,
    peers=peers,
    cost=cost,
    workspace={"release": 1, "reference": 4},
    expected=expected,
)

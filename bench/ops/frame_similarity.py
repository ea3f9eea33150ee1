# SPDX-License-Identifier: Apache-2.0
"""``frame_similarity`` against the authors' ``F.cosine_similarity`` of flattened frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

import tdc_kernels as tk

from ..benchmark import Case, Cost, Op, prefix_sums, standard_cases, video
from ..peers import eager_ops, release_ops

SLICE = 64  # pairs per call of the reference, which makes an fp32 copy and a product


def arguments(case: Case, device: str) -> tuple[Any, ...]:
    return video(case, device), prefix_sums(case, device)


def peers(case: Case) -> Mapping[str, Callable[..., Any]]:
    def release(features: Tensor, _: Tensor | None) -> Tensor:
        return release_ops.frame_similarity(features, case.cu_frames)

    return {
        "release": release,
        "eager": eager_ops.frame_similarity,
        "compile": eager_ops.frame_similarity_fusible,
    }


def cost(case: Case) -> Cost:
    """Forward: every value once for two sums (its square, its product with the next frame's): 4
    operations. Backward: read again, a gradient of the same size written, 6 operations a value."""
    values = case.frames * case.tokens * case.width
    size, pairs = values * case.itemsize, 4 * (case.frames - 1)
    if case.backward:
        return Cost(2 * size + 2 * pairs, size + pairs, 10 * values)
    return Cost(size, pairs, 4 * values)


def expected(features: Tensor, cu_frames: Tensor | None) -> Tensor:
    reference = partial(tk.frame_similarity, backend="reference")
    if cu_frames is not None or features.requires_grad:
        return reference(features, cu_frames)
    firsts = range(0, len(features) - 1, SLICE)
    return torch.cat([reference(features[i : i + SLICE + 1].float()) for i in firsts])


BENCHMARK = Op(
    name="frame_similarity",
    cases=standard_cases(576, 1536),
    arguments=arguments,
    ours=tk.frame_similarity,
    peers=peers,
    cost=cost,
    wrt=(0,),
    workspace={"release": 3, "reference": 4},
    expected=expected,
)

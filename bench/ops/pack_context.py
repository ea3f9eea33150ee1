# SPDX-License-Identifier: Apache-2.0
"""``pack_context`` against the authors' chain of ``expand`` and ``cat``, window by window."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

import tdc_kernels as tk

from ..benchmark import QUERIES, Case, Cost, Op, normal, plan, standard_cases, windows
from ..peers import eager_ops, release_ops


def arguments(case: Case, device: str) -> tuple[Any, ...]:
    static = normal((len(windows(case)) * case.tokens, case.width), case.dtype, device, seed=6)
    dynamic = len(plan(case).dynamic)
    compressed = normal((dynamic, QUERIES, case.width), case.dtype, device, seed=7)
    separator = normal((case.width,), case.dtype, device, seed=8)
    return static, compressed, separator, plan(case).to(device)


def ours(*args: Any, backend: str | None = None) -> Tensor:
    return tk.pack_context(*args, backend=backend)[0]


def peers(case: Case) -> Mapping[str, Callable[..., Any]]:
    def release(static: Tensor, compressed: Tensor, separator: Tensor, _: Any) -> Tensor:
        return release_ops.pack_context(static, compressed, separator, case.tokens, windows(case))

    def eager(
        static: Tensor, compressed: Tensor, separator: Tensor, plan: tk.ContextPlan
    ) -> Tensor:
        return eager_ops.pack_context(static, compressed, separator, plan.source)

    return {"release": release, "eager": eager}


def cost(case: Case) -> Cost:
    """Forward: static and compressed tokens and 4 bytes of plan per row read, all rows written; 3
    operations a compressed value (square, sum, scale). Backward: the output's gradient and the
    compressed tokens read, gradients of static and compressed tokens written, 7 operations."""
    static = len(windows(case)) * case.tokens * case.width
    compressed = len(plan(case).dynamic) * QUERIES * case.width
    rows = plan(case).total_tokens
    packed, size = rows * case.width, case.itemsize
    read, written = (static + compressed + case.width) * size + 4 * rows, packed * size
    if case.backward:
        read += (packed + compressed) * size + 4 * rows
        written += (static + compressed + case.width) * size
    return Cost(read, written, (10 if case.backward else 3) * compressed)


BENCHMARK = Op(
    name="pack_context",
    cases=standard_cases(156, 3584, others=(3072,)),
    arguments=arguments,
    ours=ours,
    peers=peers,
    cost=cost,
    wrt=(0, 1, 2),
)

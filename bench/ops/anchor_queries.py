# SPDX-License-Identifier: Apache-2.0
"""``anchor_queries`` against the authors' pooling and projection per asking frame."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

import tdc_kernels as tk

from ..benchmark import (
    QFORMER_WIDTH,
    QUERIES,
    Case,
    Cost,
    Op,
    normal,
    plan,
    standard_cases,
    windows,
)
from ..peers import eager_ops, release_ops


def arguments(case: Case, device: str) -> tuple[Any, ...]:
    tokens = normal((case.frames, case.tokens, case.width), case.dtype, device, seed=3)
    weight = normal((QFORMER_WIDTH, case.width), case.dtype, device, seed=4) / case.width**0.5
    bias = normal((QFORMER_WIDTH,), case.dtype, device, seed=5)
    return tokens, QUERIES, weight, bias, plan(case).anchors.to(device)


def peers(case: Case) -> Mapping[str, Callable[..., Any]]:
    def release(tokens: Tensor, k: int, weight: Tensor, bias: Tensor, _: Tensor) -> Tensor:
        return release_ops.anchor_queries(tokens, k, weight, bias, windows(case))

    return {"release": release, "eager": eager_ops.anchor_queries}


def cost(case: Case) -> Cost:
    """Forward: the anchors' tokens and the weights read, the queries written; one addition a token
    value, and the product ``[A K, D] x [D, Dq]``. Backward: weights, pooled tokens and the output's
    gradient read, gradients of all tokens and of the weights written, two such products."""
    anchors, size = len(windows(case)), case.itemsize
    tokens = anchors * case.tokens * case.width
    weights = (case.width + 1) * QFORMER_WIDTH
    queries = anchors * QUERIES * QFORMER_WIDTH
    product = 2 * queries * case.width
    forward = Cost((tokens + weights) * size, queries * size, tokens + product, product)
    if not case.backward:
        return forward
    pooled = anchors * QUERIES * case.width
    every = case.frames * case.tokens * case.width
    return Cost(
        forward.read + (weights + pooled + queries) * size,
        forward.written + (every + weights) * size,
        2 * tokens + 3 * product,
        3 * product,
    )


def every_asking_frame(case: Case, queries: Tensor) -> Tensor:
    """``[A, ...]`` to ``[M, ...]``: the authors compute one copy per frame that asks."""
    return queries[plan(case).dynamic_anchor.to(queries.device)]


def cotangent(case: Case, provider: str, out: Tensor) -> Tensor:
    """All providers differentiate one sum, that over the frames that ask."""
    if provider == "release":
        return torch.ones_like(out)
    asked = torch.tensor([others for _, others in windows(case)], dtype=out.dtype)
    return asked.to(out.device)[:, None, None].expand_as(out).contiguous()


BENCHMARK = Op(
    name="anchor_queries",
    cases=standard_cases(156, 3584, others=(3072,)),
    arguments=arguments,
    ours=tk.anchor_queries,
    peers=peers,
    cost=cost,
    wrt=(0, 2, 3),
    as_peer={"release": every_asking_frame},
    cotangent=cotangent,
)

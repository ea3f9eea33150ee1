# SPDX-License-Identifier: Apache-2.0
"""Registers the three compiled backends of an op. Where they live: ``csrc/<op>/cpu.cpp`` and
``cuda.cu`` (in the libraries of ``tdc_kernels.native``), and ``tdc_kernels/ops/<op>/triton.py``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tdc_kernels import native, registry, triton_support


def implement_fused(
    op: str,
    native_pays: registry.Accepts | None = None,
    native_backward: Callable[..., Any] | None = None,
    **constraints: Any,
) -> None:
    """Native, Triton and CUDA for a defined op; ``constraints`` are those of ``registry``.

    ``triton.py`` has the functions ``forward`` and, if the op has one, ``backward``, which take and
    return what the op's schemas say. ``native_backward``: the native gradient, where that is not in
    the compiled library.
    """
    registry.implement_compiled(
        op,
        "native",
        None,
        native_backward,
        keys=("CPU",) if native_backward is not None else (),
        requires=native.requires_cpu,
        pays=native_pays,
        **constraints,
    )
    registry.implement_compiled(op, "cuda", requires=native.requires_cuda, **constraints)
    registry.implement_compiled(
        op,
        "triton",
        triton_support.lazy(op, "forward"),
        triton_support.lazy(op, "backward"),
        keys=triton_support.KEYS,
        requires=triton_support.requires,
        pays=triton_support.pays,
        **constraints,
    )

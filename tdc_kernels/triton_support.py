# SPDX-License-Identifier: Apache-2.0
"""When the Triton backends run, and importing them only then: ``import tdc_kernels`` must not cost
the import of triton, nor need it."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import os
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch

OLDEST, NEXT = (3, 6), (3, 10)
KEYS = ("CUDA", "CPU")  # dispatch keys; the CPU is Triton's interpreter


def interpreted() -> bool:
    """True where kernels run in Triton's interpreter (triton reads this when it is imported)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def requires(device: str) -> str | None:
    """Requirements of every Triton op (``registry.Requires``)."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    found = version("triton")
    if not OLDEST <= tuple(int(x) for x in found.split(".")[:2]) < NEXT:
        return f"triton {found} is not one of 3.6 to 3.9"
    if device.startswith("cuda") or (device == "cpu" and interpreted()):
        return None
    if device == "cpu":
        return "runs on GPUs (on the CPU in Triton's interpreter only, TRITON_INTERPRET=1)"
    return f"runs on CUDA devices only, not on {device!r}"


def pays(*args: Any) -> str | None:
    """``registry.Accepts`` of automatic choice: the interpreter is for tests."""
    return "the interpreter is for tests" if args[0].device.type == "cpu" else None


def lazy(op: str, name: str) -> Callable[..., Any]:
    """``tdc_kernels.ops.<op>.triton.<name>``, imported on the first call. It gets integers and
    masks without gaps in memory, as its kernels read them."""

    @functools.cache
    def function() -> Callable[..., Any]:
        return getattr(importlib.import_module(f"tdc_kernels.ops.{op}.triton"), name)

    def dense(x: Any) -> Any:
        return x.contiguous() if isinstance(x, torch.Tensor) and not x.is_floating_point() else x

    def call(*args: Any) -> Any:
        args = tuple(map(dense, args))
        if not args[0].is_cuda:
            return function()(*args)
        with torch.cuda.device_of(args[0]):  # Triton launches on the current device
            return function()(*args)

    return call


def instance(
    kernel: Any, types: str, warps: int, **constants: Any
) -> tuple[Any, dict[str, str], dict[str, Any], int]:
    """A launch for compiling ahead of time: kernel, types of the arguments, constants, warps.

    ``types`` are Triton's names, in order, for the arguments that are no ``constants``.
    """
    names = inspect.signature(kernel.fn).parameters
    rest = iter(types.split())
    signature = {name: "constexpr" if name in constants else next(rest) for name in names}
    return kernel, signature, constants, warps

# SPDX-License-Identifier: Apache-2.0
"""The compiled libraries: are they there, loading them, and what they were built with."""

from __future__ import annotations

import ctypes
import importlib
from pathlib import Path

import torch

# Names as csrc/common/instruction_set.h numbers them.
INSTRUCTION_SETS = ("baseline", "avx2", "avx512", "avx512_bf16")


class Library:
    """A library of operators next to this file, put there by setup.py or CMake's install step.

    Args:
        name: file name.
        what: how messages call it.
        hint: how to get it, for the reason when it is not there.
    """

    def __init__(self, name: str, what: str, hint: str) -> None:
        self.path = Path(__file__).with_name(name)
        self.what = what
        self.hint = hint
        self._reason: str | None = None
        self._tried = False

    def why_not(self) -> str | None:
        """Load the library on the first call. None if its operators are there, else why not."""
        if not self._tried:
            self._tried = True
            self._reason = self.load()
        return self._reason

    def load(self) -> str | None:
        if not self.path.exists():
            return f"{self.what} was not built ({self.hint})"
        try:
            torch.ops.load_library(str(self.path))
        except OSError as error:  # built for another torch or platform: reported, never hidden
            cause = error.__cause__ or error  # torch 2.13 puts an error without reason on top
            return f"{self.what} does not load: {str(cause).splitlines()[0]}"
        return None


CPU = Library("_native.so", "the native library", "reinstall with TDC_BUILD_NATIVE=1 to see why")
CUDA = Library("_cuda.so", "the CUDA library", "reinstall with TDC_BUILD_CUDA=1 to see why")


def requires_cpu(device: str) -> str | None:
    """Requirements of every native op (``registry.Requires``)."""
    if device != "cpu":
        return f"runs on the CPU only, not on {device!r}"
    return CPU.why_not()


def requires_cuda(device: str) -> str | None:
    """Requirements of every CUDA op (``registry.Requires``)."""
    if device != "cuda":
        return f"runs on CUDA devices only, not on {device!r}"
    return CUDA.why_not()


def use_instruction_set(name: str | None) -> str:
    """Choose the instruction set of the native ops, process-wide; None: the best this CPU has.

    For tests and comparisons. Returns the name in use.

    Raises:
        ValueError: unknown, or not on this CPU.
        RuntimeError: there is no native library.
    """
    if name is not None and name not in INSTRUCTION_SETS:
        raise ValueError(f"name: expected one of {', '.join(INSTRUCTION_SETS)}, got {name!r}")
    reason = CPU.why_not()
    if reason is not None:
        raise RuntimeError(reason)
    level = -1 if name is None else INSTRUCTION_SETS.index(name)
    level = ctypes.CDLL(str(CPU.path)).tdc_use_instruction_set(level)
    if level < 0:
        raise ValueError(f"name: expected an instruction set of this CPU, got {name!r}")
    return INSTRUCTION_SETS[level]


def build_info() -> dict[str, str]:
    """Compiler, flags, targeted torch ABI of the native library, GPUs of the CUDA library, and what
    this CPU can do.

    Empty where the package was installed without compiled code.
    """
    try:
        module = importlib.import_module("tdc_kernels._build_info")
    except ImportError:
        return {}
    info = dict(module.build())
    info["cpu"] = " ".join(module.instruction_sets())
    return info

# SPDX-License-Identifier: Apache-2.0
"""The compiled library: is it there, loading it, and what it was built with."""

from __future__ import annotations

import importlib
from pathlib import Path

import torch

_LIBRARY = "_native.so"  # next to this file, by setup.py or by CMake's install step
_reason: str | None = None
_tried = False


def why_not() -> str | None:
    """Load the library on the first call. None if its operators are there, else the reason."""
    global _reason, _tried
    if not _tried:
        _tried = True
        _reason = _load(Path(__file__).with_name(_LIBRARY))
    return _reason


def _load(path: Path) -> str | None:
    if not path.exists():
        return "the native library was not built (reinstall with TDC_BUILD_NATIVE=1 to see why)"
    try:
        torch.ops.load_library(str(path))
    except OSError as error:  # built for another torch or platform: reported, never hidden
        return f"the native library does not load: {str(error).splitlines()[0]}"
    return None


def build_info() -> dict[str, str]:
    """Compiler, flags, targeted torch ABI of the native library and what this CPU can do.

    Empty where the package was installed without compiled code.
    """
    try:
        module = importlib.import_module("tdc_kernels._build_info")
    except ImportError:
        return {}
    info = dict(module.build())
    info["cpu"] = " ".join(module.instruction_sets())
    return info

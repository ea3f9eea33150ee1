# SPDX-License-Identifier: Apache-2.0
"""The compiled libraries: are they there, loading them, and what they were built with."""

from __future__ import annotations

import ctypes
import importlib
import re
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
    kind, _, number = device.partition(":")
    if kind != "cuda":
        return f"runs on CUDA devices only, not on {device!r}"
    return CUDA.why_not() or _not_built_for(int(number) if number else None)


def _not_built_for(index: int | None) -> str | None:
    """Why this driver or this CUDA device (None: the current one) cannot run what the CUDA library
    holds: a launch would fail. None where it can, or where nobody knows what was built."""
    info = build_info()
    runtime = tuple(int(n) for n in re.findall(r"\d+", info.get("cuda_runtime", "")))
    version = getattr(torch._C, "_cuda_getDriverVersion", lambda: 0)()  # 12080 is 12.8
    driver = (version // 1000, version % 1000 // 10)
    if version > 0 and driver < runtime:
        return (
            f"the CUDA library was built with CUDA {info['cuda_runtime']}, "
            f"this driver is for CUDA {driver[0]}.{driver[1]}"
        )
    built = info.get("cuda_archs", "none").split()
    try:
        capability = torch.cuda.get_device_capability(index)
    except (AssertionError, RuntimeError) as error:  # no device, or a driver that is not there
        return str(error).splitlines()[0]
    if built == ["none"] or runs(built, capability):
        return None
    return (
        f"the CUDA library was built for sm_{', sm_'.join(built)}, "
        f"not for compute capability {capability[0]}.{capability[1]}"
    )


def runs(built: list[str], capability: tuple[int, int]) -> bool:
    """True where a device of this capability runs code for one of the architectures ``built``:
    "80" for 8.0 to 8.9, "90a" for 9.0 alone, "100f" for 10.0 and later ones of its family. The
    first is there as PTX, too, which the driver compiles for later devices (not "90a")."""
    for number, arch in enumerate(built):
        found = re.fullmatch(r"(\d+)(\d)([af]?)", arch)
        if found is None:
            return True  # a name of later times
        of, suffix = (int(found[1]), int(found[2])), found[3]
        same = capability == of
        later = capability >= of and (capability[0] == of[0] or (number == 0 and not suffix))
        if same or (later and suffix != "a"):
            return True
    return False


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

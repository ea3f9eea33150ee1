# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels compiled for the CPU (cuda_on_cpu.h): backend ``cuda`` on device ``cpu``, for
tests only. Where g++ is missing, nothing changes."""

from __future__ import annotations

import functools
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from built import CSRC, TORCH, build_cuda, cached, headers, in_parallel, sources

from tdc_kernels import registry

HERE = Path(__file__).parent
FLAGS = [
    *("-std=c++20", "-O1", "-fPIC", "-shared", "-fvisibility=hidden", "-fno-strict-aliasing"),
    # Ends in SIGILL, which becomes an error of the launch: no runtime library is needed.
    "-fsanitize=alignment,bounds,shift,signed-integer-overflow,integer-divide-by-zero",
    "-fsanitize-undefined-trap-on-error",
    "-U_FORTIFY_SOURCE",  # its longjmp would not believe in fibers
    *("-DTDC_CUDA_ON_CPU", *build_cuda().DEFINES),
    *(f"-I{CSRC}", f"-I{HERE}", "-isystem", f"{TORCH}/include"),
]


def compile_for_cpu(source: Path, name: str) -> Path:
    """The library that ``source`` becomes.

    Raises:
        DoesNotCompile: with what g++ said.
    """

    def command(output: str) -> list[str]:
        library = [f"-L{TORCH}/lib", "-ltorch_cpu"]
        return ["g++", *FLAGS, "-x", "c++", str(source), "-o", output, "-x", "none", *library]

    inputs = [source, *headers(), *sorted(HERE.glob("*.h"))]
    return cached("cuda_on_cpu", f"{name}.so", inputs, command)


@functools.cache
def libraries() -> dict[str, Path | str]:
    """One for each op that has a cuda.cu, or what the compiler said."""
    if shutil.which("g++") is None:
        return {}
    found = sources("cuda.cu")
    return in_parallel(lambda op: compile_for_cpu(found[op], op), found)


def offered(entry: registry.Entry) -> registry.Entry:
    """The entry as the registry would have it if CPUs were CUDA devices."""

    def requires(device: str) -> str | None:
        return None if device == "cpu" or entry.requires is None else entry.requires(device)

    def pays(*args: Any) -> str | None:
        if args[0].device.type == "cpu":
            return "the CUDA kernels on the CPU are for tests"
        return entry.pays(*args) if entry.pays is not None else None

    return replace(entry, requires=requires, pays=pays)


@functools.cache
def register() -> None:
    """Make the registry offer what compiles."""
    for library in libraries().values():
        if isinstance(library, Path):
            torch.ops.load_library(str(library))
    for op in registry.ops():
        entries = registry._ENTRIES[op]
        entry = entries.get("cuda")
        if entry is not None and runs_on_cpu(entry):
            entries["cuda"] = offered(entry)
    registry._AVAILABLE.clear()


def runs_on_cpu(entry: registry.Entry) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(entry.handle.name(), "CPU")

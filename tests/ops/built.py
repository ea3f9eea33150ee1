# SPDX-License-Identifier: Apache-2.0
"""What tests compile is kept in build/, under a name that changes with everything it is made of."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
TORCH = Path(torch.__file__).parent


class DoesNotCompile(Exception):
    """With what the compiler said."""


def build_cuda() -> ModuleType:
    """csrc/build_cuda.py, as setup.py loads it."""
    path = CSRC / "build_cuda.py"
    module = ModuleType(path.stem)
    module.__file__ = str(path)
    exec(compile(path.read_text(), path, "exec"), module.__dict__)
    return module


def sources(name: str) -> dict[str, Path]:
    """``csrc/<op>/<name>`` of all ops that have it."""
    return {path.parent.name: path for path in sorted(CSRC.glob(f"*/{name}"))}


def headers() -> list[Path]:
    return sorted([*CSRC.glob("*/*.h"), *CSRC.glob("*/*.cuh")])


def cached(
    folder: str,
    name: str,
    inputs: Iterable[Path],
    command: Callable[[str], list[str]],
    env: dict[str, str] | None = None,
) -> Path:
    """The file that ``command(output)`` makes of ``inputs``. Several processes may ask at once.

    Raises:
        DoesNotCompile: the command failed.
    """
    versions = [torch.__version__, version(command("")[0])]
    text = "\0".join([*command(""), *versions, *(p.read_text() for p in inputs)])
    stem, suffix = os.path.splitext(name)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    path = ROOT / "build" / folder / f"{stem}-{digest}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the others wait for the one that compiles
        if not path.exists():
            part = str(path.with_name("part-" + path.name))
            done = subprocess.run(
                command(part), capture_output=True, text=True, check=False, cwd=ROOT, env=env
            )
            if done.returncode != 0:
                raise DoesNotCompile(done.stderr)
            os.replace(part, path)
    return path


@functools.cache
def version(compiler: str) -> str:
    return subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout


def in_parallel(make: Callable[[str], Path], names: Iterable[str]) -> dict[str, Path | str]:
    """``make(name)`` of all, two at a time; what the compiler said where it failed."""

    def attempt(name: str) -> Path | str:
        try:
            return make(name)
        except DoesNotCompile as error:
            return str(error)

    names = list(names)
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(names, pool.map(attempt, names), strict=True))


@functools.cache
def cuobjdump() -> str | None:
    """The one on PATH, or the one in triton's package."""
    found = shutil.which("cuobjdump")
    spec = importlib.util.find_spec("triton")
    if found is not None or spec is None or spec.origin is None:
        return found
    return shutil.which(str(Path(spec.origin).parent / "backends/nvidia/bin/cuobjdump"))


@dataclass(frozen=True)
class Kernel:
    """What the assembler says of a kernel for one architecture, in bytes."""

    arch: str
    name: str  # as the linker knows it
    stack: int
    local: int
    shared: int


def kernels(path: Path) -> list[Kernel]:
    """The kernels in an object, a library or a cubin."""
    command = [str(cuobjdump()), "--dump-resource-usage", str(path)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found, arch, name = [], "", ""
    for line in text.splitlines():
        if match := re.match(r"arch = (\w+)", line):
            arch = match[1]
        elif match := re.match(r"\s*Function (\w+):", line):
            name = match[1]
        elif "REG:" in line:
            usage = dict(re.findall(r"(STACK|LOCAL|SHARED):(\d+)", line))
            numbers = (int(usage[key]) for key in ("STACK", "LOCAL", "SHARED"))
            found.append(Kernel(arch, name, *numbers))
    return found

# SPDX-License-Identifier: Apache-2.0
"""Builds the optional native library. Everything else about the package is in pyproject.toml.

TDC_BUILD_NATIVE: 1 = failing to build is an error, 0 = do not build, unset = build where torch,
pybind11 and a C++ compiler are there. Without it the package is pure Python and works the same.
``CMakeLists.txt`` builds the same two files without Python's packaging.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shlex
import shutil
import sys
import sysconfig
from glob import glob
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

TORCH_TARGET = (2, 11)  # oldest torch the stable-ABI library runs on
FLAGS = [
    "-std=c++20",
    "-O3",
    "-fvisibility=hidden",
    "-Wno-psabi",
]  # no -march: one binary for any x86-64
WANTED = os.environ.get("TDC_BUILD_NATIVE", "")


def compiler() -> str:
    return shlex.split(os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "g++")[0]


def why_not() -> str | None:
    """The reason not to build, or None."""
    if WANTED == "0":
        return "TDC_BUILD_NATIVE=0"
    if sys.platform != "linux":
        return f"the native library is for Linux, this is {sys.platform}"
    if importlib.util.find_spec("torch") is None:
        return "no torch at build time (install torch first and use pip --no-build-isolation)"
    version = importlib.metadata.version("torch")
    if tuple(int(x) for x in version.split(".")[:2]) < TORCH_TARGET:
        return f"torch {version} is older than 2.11"
    if importlib.util.find_spec("pybind11") is None:
        return "no pybind11 at build time"
    if shutil.which(compiler()) is None:
        return f"no C++ compiler ({compiler()})"
    return None


def pure_python(reason: str) -> None:
    """The one clear line, or the error that TDC_BUILD_NATIVE=1 asks for."""
    if WANTED == "1":
        raise SystemExit(f"tdc-kernels: TDC_BUILD_NATIVE=1, but the native library: {reason}")
    if not {"egg_info", "dist_info"} & set(sys.argv):  # pip asks for metadata before it builds
        print(f"tdc-kernels: pure-Python install without the native library: {reason}", flush=True)


def extensions() -> list[Extension]:
    import pybind11

    torch = Path(importlib.util.find_spec("torch").origin).parent
    target = f"0x{TORCH_TARGET[0]:02x}{TORCH_TARGET[1]:02x}000000000000"
    native = Extension(
        "tdc_kernels._native",
        sources=sorted([*glob("csrc/*/cpu.cpp"), *glob("csrc/common/*.cpp")]),
        depends=sorted(glob("csrc/*/*.h")),
        include_dirs=["csrc", str(torch / "include")],
        library_dirs=[str(torch / "lib")],
        libraries=["torch_cpu"],  # already loaded when the library is: no rpath
        define_macros=[("TORCH_TARGET_VERSION", target)],
        extra_compile_args=FLAGS,
    )
    text = {
        "TDC_COMPILER": Path(compiler()).name,
        "TDC_FLAGS": " ".join(FLAGS),
        "TDC_TORCH_TARGET": ".".join(map(str, TORCH_TARGET)),
        "TDC_TORCH_VERSION": importlib.metadata.version("torch"),
    }
    info = Extension(
        "tdc_kernels._build_info",
        sources=["csrc/build_info/module.cpp"],
        include_dirs=[pybind11.get_include()],
        define_macros=[(name, f'"{value}"') for name, value in text.items()],
        extra_compile_args=FLAGS,
    )
    for extension in (native, info):
        extension.optional = WANTED != "1"  # else a failing build leaves a pure-Python install
        extension.language = "c++"
    return [native, info]


class BuildNative(build_ext):
    def get_ext_filename(self, fullname: str) -> str:
        # Not a Python module but a library for torch.ops.load_library: no interpreter in its name.
        if fullname.split(".")[-1] == "_native":
            return os.path.join(*fullname.split(".")) + ".so"
        return super().get_ext_filename(fullname)

    def build_extensions(self) -> None:
        super().build_extensions()
        built = {e.name: Path(self.get_ext_fullpath(e.name)).exists() for e in self.extensions}
        missing = [name for name, exists in built.items() if not exists]
        if missing:
            pure_python(f"{', '.join(missing)} did not compile, see above")


reason = why_not()
if reason is not None:
    pure_python(reason)
setup(
    ext_modules=[] if reason is not None else extensions(),
    cmdclass={"build_ext": BuildNative},
)

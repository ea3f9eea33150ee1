# SPDX-License-Identifier: Apache-2.0
"""Builds the optional compiled libraries. Everything else about the package is in pyproject.toml.

TDC_BUILD_NATIVE: 1 = failing to build is an error, 0 = do not build, unset = build where torch,
pybind11 and a C++ compiler are there. Without it the package is pure Python and works the same.
The CUDA library is csrc/build_cuda.py's (TDC_BUILD_CUDA, TDC_CUDA_ARCHS).
``CMakeLists.txt`` builds the same three files without Python's packaging.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from glob import glob
from pathlib import Path
from types import ModuleType

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

NATIVE, CUDA = "tdc_kernels._native", "tdc_kernels._cuda"
FLAGS = [
    "-std=c++20",
    "-O3",
    "-fvisibility=hidden",
    "-Wno-psabi",
]  # no -march: one binary for any x86-64
WANTED = os.environ.get("TDC_BUILD_NATIVE", "")


def compiler() -> str:
    return shlex.split(os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "g++")[0]


def load(path: str) -> ModuleType:
    """By hand, as an import would leave its __pycache__ in the sources."""
    module = ModuleType(Path(path).stem)
    module.__file__ = path
    exec(compile(Path(path).read_text(), path, "exec"), module.__dict__)
    return module


build_cuda = load("csrc/build_cuda.py")


def why_not() -> str | None:
    """The reason not to build the native library, or None."""
    if WANTED == "0":
        return "TDC_BUILD_NATIVE=0"
    reason = build_cuda.why_no_library()
    if reason is not None:
        return reason
    if importlib.util.find_spec("pybind11") is None:
        return "no pybind11 at build time"
    if shutil.which(compiler()) is None:
        return f"no C++ compiler ({compiler()})"
    return None


def without(name: str, reason: str) -> None:
    """The one clear line, or the error that TDC_BUILD_<name>=1 asks for."""
    library = {"NATIVE": "the native library", "CUDA": "the CUDA library"}[name]
    if os.environ.get(f"TDC_BUILD_{name}") == "1":
        raise SystemExit(f"tdc-kernels: TDC_BUILD_{name}=1, but {library}: {reason}")
    if not {"egg_info", "dist_info"} & set(sys.argv):  # pip asks for metadata before it builds
        kind = "pure-Python install" if name == "NATIVE" else "install"
        print(f"tdc-kernels: {kind} without {library}: {reason}", flush=True)


def native_extensions(cuda: bool) -> list[Extension]:
    import pybind11

    torch = build_cuda.torch_folder()
    native = Extension(
        NATIVE,
        sources=sorted([*glob("csrc/*/cpu.cpp"), *glob("csrc/common/*.cpp")]),
        depends=sorted(glob("csrc/*/*.h")),
        include_dirs=["csrc", str(torch / "include")],
        library_dirs=[str(torch / "lib")],
        libraries=["torch_cpu"],  # already loaded when the library is: no rpath
        extra_compile_args=[*FLAGS, *build_cuda.DEFINES],
    )
    text = {
        "TDC_COMPILER": Path(compiler()).name,
        "TDC_FLAGS": " ".join(FLAGS),
        "TDC_TORCH_TARGET": ".".join(map(str, build_cuda.TORCH_TARGET)),
        "TDC_TORCH_VERSION": importlib.metadata.version("torch"),
        "TDC_CUDA_ARCHS": " ".join(build_cuda.architectures()) if cuda else "none",
        "TDC_CUDA_RUNTIME": build_cuda.runtime() if cuda else "none",
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


def cuda_extension() -> Extension:
    extension = Extension(CUDA, sources=sorted(glob("csrc/*/cuda.cu")))
    extension.optional = os.environ.get("TDC_BUILD_CUDA") != "1"
    return extension


class BuildLibraries(build_ext):
    def get_ext_filename(self, fullname: str) -> str:
        # Not a Python module but a library for torch.ops.load_library: no interpreter in its name.
        if fullname.split(".")[-1] in ("_native", "_cuda"):
            return os.path.join(*fullname.split(".")) + ".so"
        return super().get_ext_filename(fullname)

    def build_extension(self, extension: Extension) -> None:
        if extension.name != CUDA:
            return super().build_extension(extension)
        try:
            build_cuda.build(Path(self.get_ext_fullpath(CUDA)).resolve())
        except (subprocess.CalledProcessError, OSError) as error:
            raise CompileError("nvcc failed, see above") from error

    def build_extensions(self) -> None:
        super().build_extensions()
        built = {e.name: Path(self.get_ext_fullpath(e.name)).exists() for e in self.extensions}
        missing = [name for name, exists in built.items() if not exists]
        for name, names in (("NATIVE", set(missing) - {CUDA}), ("CUDA", set(missing) & {CUDA})):
            if names:
                without(name, f"{', '.join(sorted(names))} did not compile, see above")


reasons = {"NATIVE": why_not(), "CUDA": build_cuda.why_not()}
for name, reason in reasons.items():
    if reason is not None:
        without(name, reason)
native = native_extensions(reasons["CUDA"] is None) if reasons["NATIVE"] is None else []
cuda = [cuda_extension()] if reasons["CUDA"] is None else []
setup(ext_modules=native + cuda, cmdclass={"build_ext": BuildLibraries})

# SPDX-License-Identifier: Apache-2.0
"""Build of the CUDA library by nvcc: for setup.py, CMakeLists.txt and the tests.

TDC_BUILD_CUDA: 1 = failing to build is an error, 0 = do not build, unset = build where nvcc is (in
CUDA_HOME or on PATH) and the installed torch is a CUDA build. TDC_CUDA_ARCHS: the GPUs it is for,
"80;90a;100a" unless set; the first also as PTX, which the driver compiles for any later GPU.

    python csrc/build_cuda.py OUTPUT.so | --why-not | --archs | --runtime
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
TORCH_TARGET = (2, 11)  # oldest torch the stable-ABI libraries run on
DEFINES = [f"-DTORCH_TARGET_VERSION=0x{TORCH_TARGET[0]:02x}{TORCH_TARGET[1]:02x}000000000000"]


def torch_folder() -> Path:
    """Found, not imported: that takes seconds."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def why_no_library() -> str | None:
    """The reason why no library can be compiled, or None."""
    if sys.platform != "linux":
        return f"compiled libraries are for Linux, this is {sys.platform}"
    if importlib.util.find_spec("torch") is None:
        return "no torch at build time (install torch first and use pip --no-build-isolation)"
    version = importlib.metadata.version("torch")
    if tuple(int(x) for x in version.split(".")[:2]) < TORCH_TARGET:
        return f"torch {version} is older than {'.'.join(map(str, TORCH_TARGET))}"
    return None


def nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME")
    return shutil.which(str(Path(home, "bin", "nvcc"))) if home else shutil.which("nvcc")


def why_not() -> str | None:
    """The reason not to build the CUDA library, or None."""
    wanted = os.environ.get("TDC_BUILD_CUDA", "")
    if wanted == "0":
        return "TDC_BUILD_CUDA=0"
    reason = why_no_library()
    if reason is not None:
        return reason
    if nvcc() is None:
        return "no nvcc in CUDA_HOME or on PATH"
    version = (torch_folder() / "version.py").read_text()
    if wanted != "1" and not re.search(r"^cuda\b.*=\s*['\"]", version, re.MULTILINE):
        return "the installed torch is not a CUDA build"
    return None


def architectures() -> list[str]:
    return (os.environ.get("TDC_CUDA_ARCHS") or "80;90a;100a").split(";")


def runtime() -> str:
    """The version of CUDA that is linked in, nvcc's own: "13.0", or "unknown"."""
    said = subprocess.run([str(nvcc()), "--version"], capture_output=True, text=True).stdout
    found = re.search(r"release (\d+\.\d+)", said)
    return found[1] if found else "unknown"


def flags() -> list[str]:
    """Flags of every .cu file. nvcc's own runtime is linked in (its default), and of torch
    only the stable ABI is used, so that the library serves every torch from TORCH_TARGET on."""
    codes = [f"arch=compute_{a},code=sm_{a}" for a in architectures()]
    first = architectures()[0]
    codes.append(f"arch=compute_{first},code=compute_{first}")
    return [
        *("-std=c++20", "-O3", "-lineinfo", "-DUSE_CUDA", *DEFINES),
        *(f"-I{HERE}", f"-I{torch_folder()}/include"),
        *(f"-gencode={code}" for code in codes),
        *("--threads", "2", "-Xcompiler", "-fPIC,-fvisibility=hidden"),
    ]


def compile_command(source: Path, output: str) -> list[str]:
    return [str(nvcc()), *flags(), "-c", str(source), "-o", output]


def link_commands(objects: list[str], output: str) -> list[list[str]]:
    """torch has loaded its libraries before this one: found by name, with no path in the file.
    libtorch_cuda is asked for by an empty file of its name, so that a machine whose torch is for
    CPUs builds the same."""
    stand_in = Path(output).with_name("libtorch_cuda.so")
    nothing = ["-x", "cu", os.devnull, "--cudart", "none", "-Xlinker", f"-soname={stand_in.name}"]
    folders = [f"-L{stand_in.parent}", f"-L{torch_folder()}/lib"]
    libraries = [*folders, "-ltorch_cpu", "-ltorch_cuda"]
    shared = [str(nvcc()), "-shared", "-o"]
    return [
        [*shared, str(stand_in), *nothing],
        [*shared, output, *objects, "-Xlinker", "--no-as-needed", *libraries],
    ]


def build(output: Path) -> None:
    """Compile and link all of csrc/*/cuda.cu.

    Raises:
        subprocess.CalledProcessError: nvcc failed; it has said why.
    """
    sources = sorted(HERE.glob("*/cuda.cu"))
    with tempfile.TemporaryDirectory() as folder:
        objects = [f"{folder}/{source.parent.name}.o" for source in sources]
        commands = map(compile_command, sources, objects)
        with ThreadPoolExecutor(max((os.cpu_count() or 1) // 2, 1)) as pool:  # --threads 2 each
            list(pool.map(run, commands))
        linked = f"{folder}/{output.name}"
        for command in link_commands(objects, linked):
            run(command)
        output.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(linked, output)


def run(command: list[str]) -> None:
    print(" ".join(command), flush=True)
    subprocess.run(command, check=True, cwd=HERE.parent)


if __name__ == "__main__":
    if sys.argv[1:] == ["--archs"]:
        print(*architectures())
    elif sys.argv[1:] == ["--runtime"]:
        print(runtime())
    elif sys.argv[1:] == ["--why-not"]:
        print(why_not() or "")
    else:
        build(Path(sys.argv[1]).resolve())

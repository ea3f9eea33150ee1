# SPDX-License-Identifier: Apache-2.0
"""The compiled libraries: exactly the reference's results, the stable ABI only, and builds that can
be left out."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tdc_kernels import native, registry

ROOT = Path(__file__).resolve().parents[2]
needs_library = pytest.mark.skipif(
    native.CPU.why_not() is not None, reason=str(native.CPU.why_not())
)


@pytest.fixture
def poisoned_allocations():
    """Memory that C++ allocates is poisoned too (torch.empty is patched in Python only)."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills uninitialised memory
    yield
    torch.use_deterministic_algorithms(False)


floats = st.sampled_from([0.0, -0.0, 0.5, float("inf"), -float("inf"), float("nan")]) | st.floats(
    width=32
)


@needs_library
@given(
    lengths=st.lists(st.integers(0, 30), max_size=5),
    num_boundaries=st.integers(0, 12),
    threshold=st.none() | st.floats(),
    data=st.data(),
)
def test_equals_the_reference(poisoned_allocations, lengths, num_boundaries, threshold, data):
    cu = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    pairs = max(int(cu[-1]) - 1, 0)
    values = data.draw(st.lists(floats, min_size=pairs, max_size=pairs))
    args = (torch.tensor(values), num_boundaries, cu, threshold)
    wanted = registry.entry("scene_boundaries", "reference").handle(*args)
    assert torch.equal(registry.entry("scene_boundaries", "native").handle(*args), wanted)


@needs_library
@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((torch.ones(3).double(), 1), "similarity: unexpected dtype"),
        ((torch.ones(3, 1), 1), "similarity: expected one contiguous dimension"),
        ((torch.ones(3), -1), "num_boundaries: expected a number >= 0"),
        ((torch.ones(3), 1, torch.tensor([0, 4])), "cu_frames: unexpected dtype"),
        ((torch.ones(3), 1, torch.tensor([0, 9]).int()), "cu_frames: expected a total of 4 frames"),
        ((torch.ones(3), 1, torch.tensor([0, 5, 4]).int()), "cu_frames: expected rising"),
        ((torch.ones(3), 1, torch.tensor([-1, 4]).int()), "cu_frames: expected rising"),
        ((torch.ones(3), 1, torch.zeros(0).int()), "cu_frames: expected rising"),
    ],
)
def test_operator_checks_what_it_would_read(args, message):
    """Called past the public function: an error, never memory that is not ours."""
    with pytest.raises(RuntimeError, match=message):
        registry.entry("scene_boundaries", "native").handle(*args)


@needs_library
def test_is_chosen_for_the_cpu():
    for op in ("frame_similarity", "scene_boundaries", "segment_scenes"):
        assert registry.choose(op, None, torch.ones(3), 1, None) == "native"


@needs_library
def test_build_info():
    info = native.build_info()
    assert info["torch_target"] == "2.11"
    assert "-march" not in info["flags"]  # one binary for any CPU of the architecture
    assert set(info) == {
        *("compiler", "flags", "torch_target", "torch_built_against", "cpu"),
        *("cuda_archs", "cuda_runtime"),
    }


@needs_library
@pytest.mark.skipif(shutil.which("nm") is None, reason="no nm")
def test_stable_abi_only():
    """No C++ symbol of torch or c10 is imported: those change between releases."""
    done = subprocess.run(
        ["nm", "-D", "--undefined-only", str(native.CPU.path)],
        capture_output=True,
        text=True,
        check=True,
    )
    names = [line.split()[-1] for line in done.stdout.splitlines()]
    torchs = [n for n in names if "torch" in n or "c10" in n or "2at" in n]
    assert torchs
    assert all(n.startswith(("aoti_torch_", "torch_")) for n in torchs)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "was not built"), (b"not a library", "does not load: .*_native.so")],
)
def test_missing_or_broken_library_says_so(tmp_path, content, reason):
    library = native.Library("_native.so", "the native library", "hint")
    library.path = tmp_path / "_native.so"
    if content is not None:
        library.path.write_bytes(content)
    assert re.search(reason, library.why_not())


@pytest.mark.parametrize(
    ("built", "capability", "reason"),
    [
        ("80 90a 100a", (9, 0), None),
        ("80 90a 100a", (8, 9), None),
        ("80 90a 100a", (12, 1), None),  # by the PTX of the first
        ("80 90a 100a", (7, 5), "built for sm_80, sm_90a, sm_100a, not for compute capability 7.5"),
        ("90a", (9, 0), None),
        ("90a", (10, 0), "built for sm_90a, not for compute capability 10.0"),
        ("90a 80", (12, 0), "built for sm_90a, sm_80, not for compute capability 12.0"),
        ("100f", (10, 3), None),
        ("100f", (11, 0), "built for sm_100f, not for compute capability 11.0"),
    ],
)
def test_devices_that_the_cuda_library_is_not_for(monkeypatch, built, capability, reason):
    fake_cuda(monkeypatch, 13000, {"cuda_runtime": "13.0", "cuda_archs": built}, capability)
    said = native.requires_cuda("cuda:0")
    assert said is None if reason is None else reason in said


@pytest.mark.parametrize(
    ("driver", "reason"),
    [(13010, None), (13000, None), (12080, "built with CUDA 13.0, this driver is for CUDA 12.8")],
)
def test_driver_older_than_the_cuda_library(monkeypatch, driver, reason):
    info = {"cuda_runtime": "13.0", "cuda_archs": "80"}
    fake_cuda(monkeypatch, driver, info, (9, 0))
    said = native.requires_cuda("cuda")
    assert said is None if reason is None else reason in said
    rows = [r for r in registry.table("cuda") if r.backend == "cuda"]
    assert all(r.available == (reason is None) and (reason or "") in r.reason for r in rows)


def test_each_device_is_asked_for_itself(monkeypatch):
    """And what runs there is the next backend."""
    info = {"cuda_runtime": "13.0", "cuda_archs": "90a"}
    fake_cuda(monkeypatch, 13000, info, {0: (9, 0), 1: (8, 0)})
    monkeypatch.setattr(registry, "_AVAILABLE", {})
    assert registry._available("anchor_queries", "cuda:0")[0] == "cuda"
    assert registry._available("anchor_queries", "cuda:1")[0] in ("triton", "reference")


def test_no_device_is_a_reason(monkeypatch):
    fake_cuda(monkeypatch, 0, {"cuda_runtime": "13.0", "cuda_archs": "80"}, None)
    assert native.requires_cuda("cuda") == "no NVIDIA driver"


def fake_cuda(monkeypatch, driver, info, capability):
    def get(index):
        if capability is None:
            raise RuntimeError("no NVIDIA driver\nand more")
        return capability[index] if isinstance(capability, dict) else capability

    monkeypatch.setattr(native.CUDA, "why_not", lambda: None)
    monkeypatch.setattr(native, "build_info", lambda: info)
    monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: driver, raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", get)


def build(source: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs setup.py as an install does."""
    return subprocess.run(
        [sys.executable, "setup.py", "build", "--build-base", str(source / "out")],
        cwd=source,
        env={**os.environ, "TDC_BUILD_NATIVE": "0", "TDC_BUILD_CUDA": "0", **env},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def source(tmp_path):
    """A copy of what the build needs."""
    pytest.importorskip("setuptools")
    if not (ROOT / "setup.py").exists():
        pytest.skip("not run from a source tree")
    for name in ("setup.py", "pyproject.toml", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "README.md").write_text("")
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "tdc_kernels", tmp_path / "tdc_kernels", ignore=ignored)
    return tmp_path


def said(done: subprocess.CompletedProcess[str], library: str = "native") -> list[str]:
    return [line for line in done.stdout.splitlines() if f"without the {library} library" in line]


def test_build_can_be_left_out(source):
    done = build(source, TDC_BUILD_NATIVE="0")
    assert done.returncode == 0, done.stderr
    assert said(done) == [
        "tdc-kernels: pure-Python install without the native library: TDC_BUILD_NATIVE=0"
    ]
    assert said(done, "CUDA") == ["tdc-kernels: install without the CUDA library: TDC_BUILD_CUDA=0"]
    built = {p.name for p in (source / "out").rglob("*")}
    assert "registry.py" in built
    assert not any(name.endswith(".so") for name in built)


def test_build_without_a_compiler(source):
    done = build(source, TDC_BUILD_NATIVE="", CXX="no-such-compiler")
    assert done.returncode == 0, done.stderr
    (line,) = said(done)
    assert line.endswith("(no-such-compiler)") or "no pybind11" in line
    done = build(source, TDC_BUILD_NATIVE="1", CXX="no-such-compiler")
    assert done.returncode != 0
    assert "TDC_BUILD_NATIVE=1, but the native library: no" in done.stderr


@needs_library
def test_build_that_does_not_compile(source):
    """A wrong source is a pure-Python install that says so, or an error where one was asked for."""
    for folder in (source / "csrc").iterdir():
        if folder.is_dir() and folder.name not in ("common", "scene_boundaries"):
            shutil.rmtree(folder)  # what compiles takes long
    (source / "csrc" / "scene_boundaries" / "cpu.cpp").write_text("wrong")
    done = build(source, TDC_BUILD_NATIVE="")
    assert done.returncode == 0, done.stderr
    (line,) = said(done)
    assert "did not compile" in line
    assert build(source, TDC_BUILD_NATIVE="1").returncode != 0


def fake_nvcc(source: Path, status: int = 0) -> str:
    """A CUDA_HOME whose nvcc writes down how it is called, and empty files."""
    nvcc = source / "cuda" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(
        f"""#!/bin/sh
        [ {status} = 0 ] || exit {status}
        echo "$@" >> {source}/calls
        while [ "$1" != -o ]; do shift; done
        : > "$2"
        """
    )
    nvcc.chmod(0o755)
    return str(source / "cuda")


def test_cuda_build_without_nvcc(source):
    done = build(source, TDC_BUILD_CUDA="", CUDA_HOME="/no/such/folder")
    assert done.returncode == 0, done.stderr
    (line,) = said(done, "CUDA")
    assert line.endswith(": no nvcc in CUDA_HOME or on PATH")
    done = build(source, TDC_BUILD_CUDA="1", CUDA_HOME="/no/such/folder")
    assert done.returncode != 0
    assert "TDC_BUILD_CUDA=1, but the CUDA library: no nvcc" in done.stderr


@pytest.mark.skipif(torch.version.cuda is not None, reason="torch is a CUDA build")
def test_cuda_build_is_not_for_a_torch_without_cuda(source):
    done = build(source, TDC_BUILD_CUDA="", CUDA_HOME=fake_nvcc(source))
    assert done.returncode == 0, done.stderr
    (line,) = said(done, "CUDA")
    assert line.endswith(": the installed torch is not a CUDA build")


def test_cuda_build(source):
    done = build(source, TDC_BUILD_CUDA="1", TDC_CUDA_ARCHS="90a;120", CUDA_HOME=fake_nvcc(source))
    assert done.returncode == 0, done.stderr
    assert said(done, "CUDA") == []
    assert len(list((source / "out").rglob("tdc_kernels/_cuda.so"))) == 1
    calls = (source / "calls").read_text().splitlines()
    compiled = [call for call in calls if " -c " in call]
    assert len(compiled) == len(list((source / "csrc").glob("*/cuda.cu")))
    codes = ["compute_90a,code=sm_90a", "compute_120,code=sm_120", "compute_90a,code=compute_90a"]
    assert re.findall(r"-gencode=arch=(\S+)", compiled[0]) == codes


def test_cuda_build_that_does_not_compile(source, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", fake_nvcc(source, status=1))
    done = build(source, TDC_BUILD_CUDA="1")
    assert done.returncode != 0
    assert "nvcc failed" in done.stderr

# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels as nvcc makes them for every architecture: no GPU is needed to see that nothing
spills, that loads are wide, and that the library needs nothing of torch but the stable ABI."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from built import build_cuda, cached, cuobjdump, headers, in_parallel, kernels, sources

cuda = build_cuda()
SOURCES = sources("cuda.cu")
ARCHS = {"sm_80", "sm_90a", "sm_100a"}
STATIC_SHARED = 48 << 10  # what a kernel has without asking the driver for more

# A kernel's features and how many a thread takes at once, in its mangled name: <T, V>.
PACKS = re.compile(r"I(f|d|N3c104HalfE|N3c108BFloat16E)Li(\d+)E")
SIZES = {"f": 4, "d": 8, "N3c104HalfE": 2, "N3c108BFloat16E": 2}
WIDE_LOAD = re.compile(r"LDG\.E(\.\w+)*\.128|UBLKCP")
NO_FEATURES = {"scene_boundaries": "sorts fp32 keys, one per thread"}

pytestmark = [
    pytest.mark.skipif(cuda.nvcc() is None, reason="no nvcc"),
    pytest.mark.skipif(cuobjdump() is None, reason="no cuobjdump, neither on PATH nor of triton"),
]
all_ops = pytest.mark.parametrize("op", SOURCES)
slow = pytest.mark.slow  # two minutes for all ops on two cores, once


def made(op: str) -> Path:
    """``csrc/<op>/cuda.cu`` compiled.

    Raises:
        DoesNotCompile: with what nvcc said.
    """
    inputs = [SOURCES[op], *headers()]
    return cached("cuda", f"{op}.o", inputs, lambda out: cuda.compile_command(SOURCES[op], out))


@pytest.fixture(scope="module")
def objects():
    """All of them as the library is built unless somebody says otherwise, or what nvcc said."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TDC_CUDA_ARCHS", raising=False)
        return in_parallel(made, SOURCES)


@pytest.fixture
def compiled(op, objects):
    assert isinstance(objects[op], Path), objects[op]
    return objects[op]


def test_one_op_compiles_for_one_architecture(monkeypatch):
    """What the stand-in on the CPU cannot say: nvcc takes the headers that all ops share."""
    monkeypatch.setenv("TDC_CUDA_ARCHS", "90a")
    found = kernels(made("pack_context"))
    assert {kernel.arch for kernel in found} == {"sm_90a"}
    assert not [k for k in found if k.stack > allowed_stack(k.name) or k.local]


@slow
@all_ops
def test_nothing_spills(compiled):
    found = kernels(compiled)
    assert {kernel.arch for kernel in found} == ARCHS
    assert not [k for k in found if k.stack > allowed_stack(k.name) or k.local]
    assert max(kernel.shared for kernel in found) <= STATIC_SHARED


def allowed_stack(name: str) -> int:
    """None, but in fp64: division and square root are subroutines there, and some of the registers
    that live on beyond a call are kept on the stack."""
    return 32 if re.search(r"Id(E|Li)", name) else 0


def machine_code(path: Path) -> dict[tuple[str, str], str]:
    """By architecture and kernel."""
    command = [str(cuobjdump()), "-sass", str(path)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {}
    for part in re.split(r"^arch = ", text, flags=re.MULTILINE)[1:]:
        for function in re.split(r"^\s*Function : ", part, flags=re.MULTILINE)[1:]:
            found[part.split()[0], function.split()[0]] = function
    return found


def is_wide(name: str) -> bool:
    """Made for 16 bytes at once."""
    match = PACKS.search(name)
    return match is not None and SIZES[match[1]] * int(match[2]) == 16


@slow
@all_ops
def test_loads_are_wide(op, compiled):
    if op in NO_FEATURES:
        pytest.skip(NO_FEATURES[op])
    wide = {key: code for key, code in machine_code(compiled).items() if is_wide(key[1])}
    assert {arch for arch, _ in wide} == ARCHS
    assert not [key for key, code in wide.items() if not WIDE_LOAD.search(code)]


@slow
@pytest.mark.skipif(shutil.which("nm") is None, reason="no nm")
def test_stable_abi_only(objects, tmp_path):
    """All ops link into one library, and it imports no C++ symbol of torch or c10."""
    failed = {op: said for op, said in objects.items() if isinstance(said, str)}
    assert not failed
    library = tmp_path / "_cuda.so"
    for command in cuda.link_commands([str(path) for path in objects.values()], str(library)):
        subprocess.run(command, check=True)
    command = ["nm", "-D", "--undefined-only", str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    names = [line.split()[-1] for line in done.stdout.splitlines()]
    torchs = [n for n in names if "torch" in n or "c10" in n or "2at" in n]
    assert "aoti_torch_get_current_cuda_stream" in torchs
    assert all(n.startswith(("aoti_torch_", "torch_")) for n in torchs)

# SPDX-License-Identifier: Apache-2.0
"""The stand-in that runs CUDA kernels on the CPU: what it does, and what it finds."""

from __future__ import annotations

import ctypes
import shutil
from pathlib import Path

import cuda_on_cpu
import pytest
import samples
import torch
from built import sources

from tdc_kernels import registry

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")

KERNELS = (
    *("shuffles", "votes", "around", "half_at_barrier", "lanes_missing", "from_returned"),
    *("not_in_mask", "misaligned", "nowhere", "extremes"),
)
OPS = list(sources("cuda.cu"))
ORDERS = ("forward", "reverse", "shuffle")


@pytest.fixture(scope="module")
def launch():
    path = cuda_on_cpu.compile_for_cpu(Path(cuda_on_cpu.HERE, "probe.cu"), "probe")
    function = ctypes.CDLL(str(path)).probe
    function.restype = ctypes.c_char_p
    function.argtypes = [ctypes.c_int, ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p]

    def run(kernel: str, blocks: int = 1, threads: int = 64) -> tuple[str, list[int]]:
        """The error and what the kernel wrote."""
        out = torch.zeros(256, dtype=torch.int32)
        error = function(KERNELS.index(kernel), blocks, threads, out.data_ptr())
        return error.decode(), out.tolist()

    return run


@pytest.fixture(params=ORDERS)
def order(request, monkeypatch):
    monkeypatch.setenv("TDC_CUDA_ON_CPU_ORDER", request.param)
    return request.param


@pytest.mark.parametrize("op", OPS)
def test_compiles(op):
    library = cuda_on_cpu.libraries()[op]
    assert isinstance(library, Path), library
    assert registry.entry(op, "cuda").requires("cpu") is None


@pytest.mark.parametrize("op", OPS)
def test_is_never_chosen(op):
    args = samples.operator_arguments(op, 1, packed=True)
    assert registry.choose(op, None, *args) != "cuda"


@pytest.mark.parametrize("op", OPS)
def test_results_depend_on_no_order(op, monkeypatch):
    args = samples.operator_arguments(op, 3, packed=True)
    results = []
    for order in ORDERS:
        monkeypatch.setenv("TDC_CUDA_ON_CPU_ORDER", order)
        out = registry.entry(op, "cuda").handle(*args)
        results.append(out if isinstance(out, tuple) else (out,))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=0, atol=0, equal_nan=True)


def test_shuffles(launch, order):
    error, out = launch("shuffles")
    assert error == ""
    segment = [t // 8 * 8 for t in range(64)]
    assert out[:64] == [s + 5 for s in segment]
    assert out[64:128] == [s + ((t - s) ^ 6) for t, s in enumerate(segment)]
    assert out[128:192] == [t - 3 if t - 3 >= s else t for t, s in enumerate(segment)]
    assert out[192:] == [t + 3 if t + 3 < s + 8 else t for t, s in enumerate(segment)]


def test_votes(launch, order):
    error, out = launch("votes", threads=40)
    assert error == ""
    assert [set(out[i : i + 8]) for i in range(0, 40, 8)] == [{0b10101010}, {1}, {0}, {1}, {0}]


def test_barriers_and_poisoned_shared_memory(launch, order):
    error, out = launch("around", blocks=2, threads=90)  # the last warp is not a whole one
    assert error == ""
    assert out[1:181] == [(t + 3) % 90 + 2 for t in range(90)] * 2
    ranks = out[200:202]  # poison is -1
    assert ranks == [0, 1] if order == "forward" else ranks == [1, 0] or order == "shuffle"


def test_minimum_and_maximum_drop_nan(launch):
    assert launch("extremes", threads=1)[1][0] == 1


@pytest.mark.parametrize(
    ("kernel", "threads", "message"),
    [
        ("half_at_barrier", 32, "deadlock: 16 threads wait at __syncthreads, 16 at a warp"),
        ("lanes_missing", 64, "62 at a warp operation (the first is thread 0, mask 0xffffffff)"),
        ("from_returned", 32, "shuffles from lane 3, which is not there"),
        ("not_in_mask", 2, "lane 1 waits with mask 0x00000001, which leaves it out"),
        ("misaligned", 1, "thread 0: overflow, or access misaligned or outside of an array"),
        ("nowhere", 1, "thread 0: access to memory that is not there"),
        ("votes", 1025, "invalid launch: 1 x 1 x 1 blocks of 1025 x 1 x 1 threads"),
        ("votes", 0, "invalid launch"),
    ],
)
def test_misuse_is_an_error(launch, order, kernel, threads, message):
    error, _ = launch(kernel, threads=threads)
    assert message in error
    assert "\n" not in error
    assert launch("shuffles")[0] == ""  # and the next launch is a fresh one

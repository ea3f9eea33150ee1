# SPDX-License-Identifier: Apache-2.0
"""The ops under pytest-benchmark: ``pytest bench/pytest_ops.py --benchmark-json=FILE [-k EXPR]``.

On the CPU. Its fixture times one function per test, so that the providers of a case follow each
other instead of taking turns; what ``python -m bench`` writes is what ratios are quoted from.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from . import kernels, providers
from .benchmark import Case, Op, ops
from .timing import timers

ROUNDS = 5
CASES = [
    pytest.param(op, case, provider, id=f"{op.name}-{case}-{provider}")
    for op in ops()
    for case in op.cases
    for provider in (
        *(peer for peer in op.peers(case) if peer != "compile"),
        *providers.COMPILE_MODES,
        *providers.backends(op.name, "cpu"),
    )
]

failing_tests = functools.cache(kernels.failing_tests)


@functools.lru_cache(maxsize=1)  # the tests of a case follow each other
def prepared(name: str, case: Case) -> providers.Prepared:
    (op,) = ops([name])
    return providers.prepare(op, case, "cpu")


@pytest.mark.parametrize(("op", "case", "provider"), CASES)
def test_op(op: Op, case: Case, provider: str, benchmark: Any) -> None:
    refused = failing_tests(op.name, kernels.TESTS)
    if refused is not None:
        pytest.fail(refused, pytrace=False)
    with torch.set_grad_enabled(case.backward):
        ready = prepared(op.name, case)
        if provider in ready.skipped:
            pytest.skip(ready.skipped[provider])
        call = ready.calls[provider]
        loops = timers.sampler(call, [ready.args], "cpu").loops
        benchmark.group = f"{op.name} {case}"
        benchmark.pedantic(call, ready.args, rounds=ROUNDS, iterations=loops, warmup_rounds=1)

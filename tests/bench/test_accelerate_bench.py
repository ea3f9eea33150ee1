# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import argparse

import pytest
import torch

import tdc_kernels
from bench.model import accelerate
from bench.run import Run
from tdc_kernels.patch import ALREADY


@pytest.mark.slow  # there is one size, the released one's: 190M parameters, copied once
@pytest.mark.parametrize("backward", [False, True])
def test_measures_an_accelerated_copy(backward: bool) -> None:
    run = Run(accelerate.BENCHMARK, argparse.Namespace(rounds=1))
    (row,) = run.measure(accelerate.measurement(1, torch.float32, backward))
    assert row["speedup"] > 0 and row["largest_difference"] < 1e-4
    plain, ours, _ = accelerate.make(1, torch.float32)
    assert {s.reason for s in tdc_kernels.accelerate(ours).skipped} == {ALREADY}
    assert len(tdc_kernels.accelerate(plain, dry_run=True).replaced) == 6

# SPDX-License-Identifier: Apache-2.0
"""What the op tests run on: every device there is, every backend the registry calls capable."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from tdc_kernels import registry


@dataclass(frozen=True)
class Target:
    device: str
    backend: str

    def __str__(self) -> str:
        return f"{self.device}-{self.backend}"


def targets(op: str, slow: str | None = None) -> pytest.MarkDecorator:
    """Parametrise a test's ``target`` over the capable backends of ``op``; that of `slow` belongs
    to the slower tier."""
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    found = [
        pytest.param(
            Target(device, row.backend),
            marks=[pytest.mark.gpu] * (device == "cuda")
            + [pytest.mark.slow] * (row.backend == slow),
        )
        for device in devices
        for row in registry.table(device)
        if row.op == op and row.available
    ]
    return pytest.mark.parametrize("target", found, ids=str)


DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))

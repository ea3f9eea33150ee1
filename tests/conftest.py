# SPDX-License-Identifier: Apache-2.0
"""For all tests: fixed seeds, poisoned memory, GPU tests skipped where there is none."""

from __future__ import annotations

import functools
import os
import random
from typing import Any

import hypothesis
import pytest
import torch
from torch.utils._device import _device_constructors

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported

# `with torch.device("meta")` recognises torch.empty by identity and remembers the list on first
# use: let it see the real functions, not the poisoned ones below.
_device_constructors()

hypothesis.settings.register_profile(
    "tdc",
    max_examples=60,
    deadline=None,  # the first example pays for imports and warm-up
    derandomize=True,  # the same examples on every machine
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
# `make test`: Triton's interpreter takes up to 0.4 seconds for each.
hypothesis.settings.register_profile(
    "fast", hypothesis.settings.get_profile("tdc"), max_examples=12
)
hypothesis.settings.load_profile("tdc")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def _seed() -> None:
    random.seed(0)
    torch.manual_seed(0)


def poison(x: torch.Tensor) -> torch.Tensor:
    """Fill memory that nobody wrote: NaN for floating tensors, a wild value for integers."""
    if x.is_meta or x.is_quantized or x.dtype == torch.bool:
        return x
    with torch.no_grad():
        if x.is_complex() or (x.is_floating_point() and x.itemsize > 1):
            x.fill_(float("nan"))
        elif not x.is_floating_point():
            x.fill_(torch.iinfo(x.dtype).max - 7)
    return x


@pytest.fixture(autouse=True)
def _poison_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading memory that came from ``torch.empty*`` unwritten shows as NaN, not by chance."""

    def poisoned(make):
        @functools.wraps(make)
        def wrapper(*args, **kwargs):
            out = make(*args, **kwargs)
            # A compiler traces through here: its graphs must not contain the poison.
            return out if torch.compiler.is_compiling() else poison(out)

        return wrapper

    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, poisoned(getattr(torch, name)))
    for name in ("new_empty", "new_empty_strided"):
        monkeypatch.setattr(torch.Tensor, name, poisoned(getattr(torch.Tensor, name)))


@pytest.fixture(scope="session")
def model() -> Any:
    """A toy model (tests/helpers/toy.py) for all tests that do not change it."""
    import toy

    return toy.toy_model()


@pytest.fixture(scope="session")
def processor() -> Any:
    import toy

    return toy.toy_processor()

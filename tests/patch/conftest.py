# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

import tdc_kernels as tk
from tdc_kernels import native


@pytest.fixture
def torch_backend():
    """By name, so that calls with a gradient to come are served as well."""
    with tk.use_backend("torch"):
        yield


@pytest.fixture(params=["torch", "native"])
def backend(request):
    """The same with each that has a gradient of its own."""
    if request.param == "native" and native.CPU.why_not() is not None:
        pytest.skip(native.CPU.why_not())
    with tk.use_backend(request.param):
        yield request.param

# SPDX-License-Identifier: Apache-2.0
"""One tiny model and processor for all tests that do not change them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import tiny

from tdc import TDCForConditionalGeneration, TDCProcessor

# The converter's tests run recordings through what it wrote.
sys.path.append(str(Path(__file__).parents[1] / "parity"))


@pytest.fixture(scope="session")
def model() -> TDCForConditionalGeneration:
    return tiny.tiny_model()


@pytest.fixture(scope="session")
def processor() -> TDCProcessor:
    return tiny.tiny_processor()

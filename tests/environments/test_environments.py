# SPDX-License-Identifier: Apache-2.0
"""The package in fresh environments, on those Pythons that this machine has."""

from __future__ import annotations

from pathlib import Path

import matrix
import pytest


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if matrix.uv() is None:
        pytest.skip("uv is not installed")
    return matrix.build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.mark.slow
@pytest.mark.parametrize("name", matrix.ENVIRONMENTS)
def test_environment(name: str, wheel: Path, tmp_path: Path) -> None:
    environment = matrix.ENVIRONMENTS[name]
    if matrix.interpreter(environment.python) is None:
        pytest.skip(f"no Python {environment.python} on the path")
    print(matrix.check(environment, wheel, tmp_path))

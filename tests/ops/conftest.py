# SPDX-License-Identifier: Apache-2.0
"""For the op tests: the CUDA kernels run without a GPU too, as they register before tests are made;
and native ops with any instruction set."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import cuda_on_cpu
import pytest

from tdc_kernels import native

cuda_on_cpu.register()


@pytest.fixture
def instruction_set() -> Iterator[Callable[[str], None]]:
    """Makes native ops use the instruction set of that name, for one test; skips what this CPU has
    not."""
    reason = native.CPU.why_not()
    if reason is not None:
        pytest.skip(reason)

    def use(name: str) -> None:
        try:
            native.use_instruction_set(name)
        except ValueError as error:
            pytest.skip(str(error))

    yield use
    native.use_instruction_set(None)

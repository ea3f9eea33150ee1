# SPDX-License-Identifier: Apache-2.0
"""Peak memory of a run, weights included."""

from __future__ import annotations

import resource
import threading
from pathlib import Path
from types import TracebackType
from typing import ClassVar

import torch

INTERVAL_S = 2e-3  # between two looks at the resident memory


def resident() -> int:
    """Bytes resident now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


class Peak:
    """``with Peak(device) as peak: ...``, then ``peak.bytes``.

    On a GPU what PyTorch's allocator had in use at most; on a CPU the process's resident memory,
    looked at every two milliseconds.
    """

    WHAT: ClassVar = {
        "cuda": "allocated on the GPU, weights included",
        "cpu": "resident, weights and everything imported included",
    }

    def __init__(self, device: str) -> None:
        self.device, self.bytes = device, 0
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Peak:
        if self.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        else:
            self.bytes = resident()
            self._watcher.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
            self.bytes = torch.cuda.max_memory_allocated()
            return
        self._done.set()
        self._watcher.join()
        self.bytes = max(self.bytes, resident())

    def _watch(self) -> None:
        while not self._done.wait(INTERVAL_S):
            self.bytes = max(self.bytes, resident())

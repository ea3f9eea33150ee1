# SPDX-License-Identifier: Apache-2.0
"""How often Triton would compile each kernel over many lengths; needs no GPU.

    python count_compilations.py OUTPUT

OUTPUT is a JSON object: op, dtype and kernel -> the number of different launches, as Triton tells
them apart. A process of its own: where kernels are interpreted, nothing is specialised.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import samples
import torch
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.runtime.jit import JITFunction, create_function_from_signature

LENGTHS = (*range(1, 42), 48, 64, 100, 128, 255, 256, 512, 1000, 1024)
BACKEND = CUDABackend(GPUTarget("cuda", 90, 32))
seen: dict[str, set[str]] = defaultdict(set)
case = ""


def run(self: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
    """In place of a launch."""
    binder = create_function_from_signature(self.signature, self.params, BACKEND)
    _, specialization, options = binder(*args, **options)
    seen[f"{case} {self.fn.__name__}"].add(f"{specialization} {options}")


def calls(op: str, n: int, width: int, dtype: torch.dtype) -> list[tuple[str, tuple[Any, ...]]]:
    """Arguments of the operator and of its gradient, all lengths ``n`` or so."""
    x = torch.zeros(n, width, dtype=dtype)
    cu = torch.zeros(n + 1, dtype=torch.int32)
    index = torch.zeros(n, dtype=torch.int64)
    if op == "frame_similarity":
        acc = torch.promote_types(dtype, torch.float32)
        back = (torch.zeros(n - 1), x, torch.zeros(n, 2, dtype=acc), cu)
        return [("forward", (x, cu)), ("backward", back)]
    if op == "scene_boundaries":
        return [("forward", (torch.zeros(n), n, cu[: max(n - 3, 2)], 0.1 * n))]
    if op == "segment_scenes":
        return [("forward", (x, n, cu, 0.1 * n))]
    tokens = torch.zeros(n, n, width, dtype=dtype)
    if op == "anchor_queries":
        back = (torch.zeros(n, n, width, dtype=dtype), n, n, index, dtype)
        return [("forward", (tokens, n, index)), ("backward", back)]
    if op == "pack_context":
        numbers = torch.zeros(2 * n, dtype=torch.int32)
        compressed = torch.zeros(1, n, width, dtype=dtype)
        pieces = (x, compressed, x[0], numbers, numbers, numbers)
        back = (x, compressed, numbers, numbers, True, True, True)
        return [("forward", pieces), ("backward", back)]
    assert op == "cross_attention"
    weight = torch.zeros(16, width, dtype=dtype)
    query = torch.zeros(n, 16, 16, dtype=dtype)
    mask = torch.ones(n, 2 * n, dtype=torch.bool)
    args = (query, tokens, tokens, weight, None, weight, weight[:, 0].contiguous(), 2)
    args = (*args, index, index, index, mask, None, None)
    forward = [("forward", (*args, absorb)) for absorb in (False, True)]
    return [*forward, ("backward", (query, *args, False, True, True))]


def main(output: Path) -> None:
    global case
    JITFunction.run = run
    for op in samples.tk.registry.ops():
        module = importlib.import_module(f"tdc_kernels.ops.{op}.triton")
        for dtype in (torch.bfloat16, torch.float32, torch.float64):
            for width in (48, 12):  # the second one's rows are no multiples of 16
                for n in LENGTHS if op != "cross_attention" else LENGTHS[:-9:3]:
                    for name, args in calls(op, n, width, dtype):
                        case = f"{op} {dtype} {width} {name}"
                        getattr(module, name)(*args)
    output.write_text(json.dumps({name: len(keys) for name, keys in seen.items()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

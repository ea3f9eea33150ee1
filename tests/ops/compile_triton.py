# SPDX-License-Identifier: Apache-2.0
"""Compiles the Triton kernels of all ops for GPUs that need not be there (test_triton_aot.py).

    python compile_triton.py OUTPUT

A process of its own: where kernels are interpreted (TRITON_INTERPRET=1), they cannot be compiled.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import tdc_kernels.ops

CAPABILITIES = (80, 90, 100)
DIVISIBLE = re.compile(
    r"stride|width|dim|channels"
)  # sizes that are multiples of 16 for all models in use
WIDE_LOAD = re.compile(  # from global memory, 16 bytes or more
    r"ld\.global[\w.:]*\.(v4\.[bfu]32|v2\.[bfu]64|v8\.[bfu]32|v4\.[bfu]64)|cp\.async\.cg"
)


def attributes(signature: dict[str, str]) -> dict[tuple[int], list[list[Any]]]:
    """What a launch knows of aligned tensors, and compiles for."""
    return {
        (i,): [["tt.divisibility", 16]]
        for i, (name, kind) in enumerate(signature.items())
        if kind.startswith("*") or (kind != "constexpr" and DIVISIBLE.search(name))
    }


def compile_all(op: str, output: Path) -> list[dict[str, Any]]:
    """Every instance that the op's triton.py lists, and what is to be known of it."""
    found = []
    instances = importlib.import_module(f"tdc_kernels.ops.{op}.triton").AOT
    for number, (kernel, signature, constants, warps) in enumerate(instances):
        source = ASTSource(kernel, signature, constants, attributes(signature))
        for capability in CAPABILITIES:
            target = GPUTarget("cuda", capability, 32)
            made = triton.compile(source, target=target, options={"num_warps": warps})
            cubin = output / f"{op}-{number}-{capability}.cubin"
            cubin.write_bytes(made.asm["cubin"])
            found.append(
                {
                    "op": op,
                    "kernel": source.name,
                    "capability": capability,
                    "signature": signature,
                    "shared": made.metadata.shared,
                    "wide": WIDE_LOAD.search(made.asm["ptx"]) is not None,
                    "cubin": cubin.name,
                }
            )
    return found


def main(output: Path) -> None:
    ops = [p.parent.name for p in sorted(Path(tdc_kernels.ops.__file__).parent.glob("*/triton.py"))]
    found = [kernel for op in ops for kernel in compile_all(op, output)]
    (output / "kernels.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

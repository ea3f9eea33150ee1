# SPDX-License-Identifier: Apache-2.0
"""Compiles the Triton kernels of all ops for GPUs that need not be there (test_triton_aot.py).

    python compile_triton.py one|all OUTPUT

``all``: every instance for every architecture; ``one``: the first of each op, for Hopper. OUTPUT is
a JSON list of what is to be known of each.

A process of its own: where kernels are interpreted (TRITON_INTERPRET=1), they cannot be compiled.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from built import kernels
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


def attributes(kernel: Any, signature: dict[str, str]) -> dict[tuple[int], list[list[Any]]]:
    """What a launch knows of aligned tensors, and compiles for."""
    ignored = {p.name for p in kernel.params if p.do_not_specialize}
    ignored |= {p.name for p in kernel.params if p.do_not_specialize_on_alignment}
    return {
        (i,): [["tt.divisibility", 16]]
        for i, (name, kind) in enumerate(signature.items())
        if name not in ignored
        and (kind.startswith("*") or (kind != "constexpr" and DIVISIBLE.search(name)))
    }


def compile_op(op: str, extent: str) -> list[dict[str, Any]]:
    """The instances that the op's triton.py lists, and what is to be known of them."""
    found = []
    instances = importlib.import_module(f"tdc_kernels.ops.{op}.triton").AOT
    for kernel, signature, constants, warps in instances if extent == "all" else instances[:1]:
        source = ASTSource(kernel, signature, constants, attributes(kernel, signature))
        for capability in CAPABILITIES if extent == "all" else (90,):
            target = GPUTarget("cuda", capability, 32)
            made = triton.compile(source, target=target, options={"num_warps": warps})
            with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
                cubin.write(made.asm["cubin"])
                cubin.flush()
                (usage,) = kernels(Path(cubin.name))
            found.append(
                {
                    "op": op,
                    "kernel": source.name,
                    "capability": capability,
                    "signature": signature,
                    "shared": made.metadata.shared,
                    "wide": WIDE_LOAD.search(made.asm["ptx"]) is not None,
                    "memory": usage.stack + usage.local,
                }
            )
    return found


def main(extent: str, output: Path) -> None:
    ops = [p.parent.name for p in sorted(Path(tdc_kernels.ops.__file__).parent.glob("*/triton.py"))]
    output.write_text(json.dumps([kernel for op in ops for kernel in compile_op(op, extent)]))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))

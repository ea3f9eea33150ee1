# SPDX-License-Identifier: Apache-2.0
"""Every op of one backend, forward and gradient, at small sizes: what compute-sanitizer watches.

``compute-sanitizer --tool racecheck python -m bench.gpu.sanitize`` slows kernels down a hundred
times, so frames are few and narrow: one video and a ragged batch, an even width and an odd one,
which no vector load fits. Whatever comes out must be finite.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from tdc_kernels import registry

from ..benchmark import Case, Op, ops

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WIDTHS = (32, 37)
NAMES = ("paper", "ragged", "blip2")


def cases(op: Op) -> Iterator[Case]:
    """The op's kinds of input, small, in every dtype and width."""
    kinds = {c.name: c for c in op.cases if c.name in NAMES and not c.backward}
    half = any(c.dtype != torch.float32 for c in op.cases)
    for case in kinds.values():
        for dtype in DTYPES if half else (torch.float32,):
            for width in WIDTHS:
                lengths = case.lengths[:4] if len(case.lengths) > 1 else (28,)
                yield replace(case, dtype=dtype, lengths=lengths, tokens=20, width=width)


def run(op: Op, case: Case, device: str, backend: str) -> str | None:
    """None, or why the backend does not take the case.

    Raises:
        RuntimeError: an output or a gradient is not finite.
    """
    args = op.arguments(case, device)
    for i in op.wrt:
        args[i].requires_grad_()
    try:
        out = op.ours(*args, backend=backend)
    except (RuntimeError, NotImplementedError) as error:
        if "cannot run" in str(error):
            return str(error).splitlines()[0]
        raise
    outputs = (out,) if isinstance(out, Tensor) else tuple(out)
    found = [x for x in outputs if x.is_floating_point()]
    if op.wrt:
        total = found[0].masked_fill(found[0].isinf(), 0).float().sum()  # +inf between two videos
        found += torch.autograd.grad(total, [args[i] for i in op.wrt])
    if any(bool(x.isnan().any()) for x in found):
        raise RuntimeError(f"{op.name} {case}: NaN")
    return None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m bench.gpu.sanitize")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--backend", choices=registry.BACKENDS, default="cuda")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.exit(2, f"{parser.prog}: --device cuda: there is no CUDA device\n")
    ran = 0
    for op in ops():
        for case in cases(op):
            reason = run(op, case, args.device, args.backend)
            ran += reason is None
            note = f": {reason}" if reason else ""
            sys.stdout.write(f"{op.name} {case} width {case.width}{note}\n")
    if not ran:
        parser.exit(1, f"{parser.prog}: the backend {args.backend} ran nothing\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

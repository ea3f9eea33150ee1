# SPDX-License-Identifier: Apache-2.0
"""The connector, its last layer for every frame or for static frames only.

Most frames are dynamic: the compressor takes them unprojected. On at most 32 frames, of which one
in eight is static.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from torch import Tensor

from tdc.encoder.connector import SVAConnector

from .. import providers
from ..benchmark import Benchmark, Measurement, Refused
from ..report import results
from . import compressor_case
from .compressor_case import WINDOW, Shape

MOST_FRAMES = 32


def measurement(shape: Shape, dtype: torch.dtype, device: str, record: str) -> Measurement:
    torch.manual_seed(0)
    widths = shape.siglip_width, shape.dinov2_width
    module = SVAConnector(*widths, shape.connector_width, shape.width).to(device, dtype).eval()
    frames = min(shape.frames, MOST_FRAMES)
    siglip, dinov2 = (torch.randn(frames, 576, width).to(device, dtype) for width in widths)

    def every() -> Tensor:
        return module.grid_tokens(siglip, dinov2)  # by the projector itself, without newlines

    def static() -> Tensor:
        return module(siglip, dinov2, (384, 384)).final(torch.arange(0, frames, WINDOW))

    side = module.output_grid
    got = static().unflatten(1, (side, side + 1))[:, :, :-1].flatten(1, 2)
    expected = every()[::WINDOW]
    wrong = providers.difference((got,), (expected,), providers.TOLERANCE[dtype])
    if wrong is not None:
        raise Refused(f"the static frames' tokens differ: {wrong}")
    facts = compressor_case.facts_of(shape, dtype)
    facts["max_abs_error"] = (got - expected).abs().max().item()
    part = f"connector of {frames} frames, last layer for static ones only"
    calls = {"ours": static, "every frame": every}
    return Measurement(f"{part}, {facts['dtype']}", record, calls, results.of_part(part), facts)


def measurements(args: argparse.Namespace) -> Iterator[Measurement]:
    record = compressor_case.record_of("connector", args)
    shape, dtype = compressor_case.shape_of(args), getattr(torch, args.dtype)
    yield measurement(shape, dtype, args.device, record)


BENCHMARK = Benchmark("connector", measurements, compressor_case.options)

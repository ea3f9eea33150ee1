# SPDX-License-Identifier: Apache-2.0
"""The packed context in Triton: one launch forward, one backward. A program owns a tile of whole
rows; what fits stays in registers between the norm and the write, the rest of a longer row is read
again from the cache."""

from __future__ import annotations

from typing import Any

import torch
import triton

from tdc_kernels import _checks
from tdc_kernels.ops import operands
from tdc_kernels.ops.frame_similarity.triton import triton_dtype
from tdc_kernels.ops.pack_context.triton_rows import pack, pack_backward
from tdc_kernels.triton_support import instance

# A program's tile in the type of accumulation: the paper's 3584 channels take one program per row.
# The backward holds two, hence twice the warps (144 registers a thread with 4). Not tuned on a GPU.
TILE_BYTES, WARPS, BACKWARD_WARPS = 16384, 4, 8
MOST_ROWS = 16  # of short rows in one tile
SEPARATOR_COLUMNS = 128  # of a program that sums up separators: 256 bytes of a bf16 row


def tile_elements(dtype: torch.dtype) -> int:
    return TILE_BYTES // (8 if dtype == torch.float64 else 4)


def tile_shape(width: int, dtype: torch.dtype) -> tuple[int, int]:
    """Rows of a program and columns of its tile, for rows of this width."""
    most = tile_elements(dtype)
    columns = min(triton.next_power_of_2(width), most)
    return min(most // columns, MOST_ROWS), columns


def forward(
    static: torch.Tensor,
    compressed: torch.Tensor,
    separator: torch.Tensor,
    source: torch.Tensor,
    position: torch.Tensor,
    separators: torch.Tensor,
) -> torch.Tensor:
    operands.dense("static", static, "[Ns, D]", 2, static)
    operands.int32("source", source, "[N]", static)
    tokens, width = source.shape[0], static.shape[1]
    operands.compressed(compressed, static)
    operands.sized("separator", separator, (width,), static)
    _checks.same_dtype("separator", separator, static.dtype, "static")
    frames, queries = compressed.shape[:2]
    out = static.new_empty((tokens, width))
    if out.numel() == 0:
        return out
    rows, columns = tile_shape(width, static.dtype)
    pack[(triton.cdiv(tokens, rows),)](
        static,
        compressed,
        separator.contiguous(),
        source,
        out,
        static.shape[0],
        frames * queries,
        queries,
        static.stride(0),
        compressed.stride(0),
        compressed.stride(1),
        tokens,
        width,
        ROWS=rows,
        COLUMNS=columns,
        WIDE=operands.begin_wide(static, compressed, separator),
        ACC=triton_dtype(static.dtype),
        num_warps=WARPS,
    )
    return out


def backward(
    grad: torch.Tensor,
    compressed: torch.Tensor,
    position: torch.Tensor,
    separators: torch.Tensor,
    for_static: bool,
    for_compressed: bool,
    for_separator: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    _checks.floating("grad", grad, "[N, D]", ndim=2)
    operands.compressed(compressed, grad)
    operands.int32("position", position, "[Ns + M*K]", grad)
    operands.int32("separators", separators, "[S]", grad)
    tokens, width = grad.shape
    frames, queries = compressed.shape[:2]
    static_rows = position.shape[0] - frames * queries
    if static_rows < 0:
        raise ValueError("position: expected an entry per row of compressed")
    to_static = grad.new_empty((static_rows if for_static else 0, width))
    to_compressed = grad.new_empty((frames if for_compressed else 0, queries, width))
    to_separator = grad.new_empty((width if for_separator else 0,))
    grad = grad if width <= 1 or grad.stride(1) == 1 else grad.contiguous()
    rows, columns = tile_shape(width, grad.dtype)
    tiles = triton.cdiv(width, SEPARATOR_COLUMNS) if for_separator else 0
    begin = 0 if for_static else static_rows
    end = position.shape[0] if for_compressed else static_rows
    programs = tiles + triton.cdiv(max(end - begin, 0), rows)
    if programs > 0 and width > 0:
        pack_backward[(programs,)](
            grad,
            compressed,
            position,
            separators,
            to_static,
            to_compressed,
            to_separator,
            tiles,
            begin,
            end,
            static_rows,
            queries,
            separators.shape[0],
            tokens,
            width,
            grad.stride(0),
            compressed.stride(0),
            compressed.stride(1),
            ROWS=rows,
            COLUMNS=columns,
            SEPARATOR_ROWS=tile_elements(grad.dtype) // SEPARATOR_COLUMNS,
            SEPARATOR_COLUMNS=SEPARATOR_COLUMNS,
            WIDE=operands.begin_wide(grad, compressed),
            ACC=triton_dtype(grad.dtype),
            num_warps=BACKWARD_WARPS,
        )
    return to_static, to_compressed, to_separator


def _instances(dtype: torch.dtype, name: str) -> list[Any]:
    """The launches above for the paper's 3584 channels in one dtype, called ``name`` by Triton."""
    rows, columns = tile_shape(3584, dtype)
    shared = {"ROWS": rows, "COLUMNS": columns, "WIDE": True, "ACC": triton_dtype(dtype)}
    return [
        instance(
            pack,
            f"*{name} *{name} *{name} *i32 *{name} i32 i32 i32 i32 i32 i32 i32 i32",
            WARPS,
            **shared,
        ),
        instance(
            pack_backward,
            f"*{name} *{name} *i32 *i32 *{name} *{name} *{name} "
            "i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32",
            BACKWARD_WARPS,
            SEPARATOR_ROWS=tile_elements(dtype) // SEPARATOR_COLUMNS,
            SEPARATOR_COLUMNS=SEPARATOR_COLUMNS,
            **shared,
        ),
    ]


AOT = [
    *_instances(torch.bfloat16, "bf16"),
    *_instances(torch.float32, "fp32"),
    *_instances(torch.float64, "fp64"),
]

# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels that lay out the packed context's rows, and their gradients."""

from __future__ import annotations

import triton
import triton.language as tl

EPS = tl.constexpr(1e-12)  # smallest norm divided by, as in torch.nn.functional.normalize

# What differs from call to call, for which nothing is compiled anew. Of strides WIDE is known.
LENGTHS = ["static_rows", "compressed_rows", "queries", "tokens", "tiles", "begin", "end", "count"]
LENGTHS += ["static_stride", "grad_stride", "frame_stride", "query_stride"]
NUMBERS = ["source", "position", "separators"]


@triton.jit
def root(square):
    """The square root, correctly rounded: once a row, and every element depends on it."""
    if square.dtype == tl.float64:
        return tl.sqrt(square)
    else:
        return tl.sqrt_rn(square)


@triton.jit
def inverse(norm):
    """1 / max(norm, eps); a NaN stays one."""
    eps = tl.full(norm.shape, EPS, norm.dtype)  # a bare number is rounded to fp32 first
    norm = tl.where(norm < eps, eps, norm)
    if norm.dtype == tl.float64:
        return 1.0 / norm
    else:
        return tl.div_rn(tl.full(norm.shape, 1.0, tl.float32), norm)


@triton.jit
def compressed_offset(row, queries, frame_stride, query_stride):
    """Of row m * K + k."""
    frame = (row // queries).to(tl.int64)
    return frame * frame_stride + (row % queries).to(tl.int64) * query_stride


@triton.jit(
    do_not_specialize=LENGTHS,
    do_not_specialize_on_alignment=NUMBERS,
)
def pack(
    static,  # [Ns, D], rows `static_stride` apart
    compressed,  # [M, K, D]
    separator,  # [D]
    source,  # int32 [N]
    out,  # [N, D]
    static_rows,
    compressed_rows,
    queries,
    static_stride,
    frame_stride,
    query_stride,
    tokens,
    width,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDE: tl.constexpr,  # all rows begin at multiples of 16 bytes
    ACC: tl.constexpr,
):
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    exists = n < tokens
    row = tl.load(source + n, mask=exists, other=0)
    place = row - static_rows
    unit = exists & (place >= 0) & (place < compressed_rows)
    # Any other number is the separator: what is not there is not read.
    plain = tl.where((row >= 0) & (place < 0), static + row.to(tl.int64) * static_stride, separator)
    place = tl.where(unit, place, 0)
    offset = compressed_offset(place, queries, frame_stride, query_stride)
    x = tl.where(unit, compressed + offset, plain)
    if WIDE:
        x = tl.multiple_of(x, 16)
    x = x[:, None]
    to = (out + n.to(tl.int64) * width)[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    mask = exists[:, None] & (column < width)
    value = tl.load(x + column, mask=mask, other=0.0)
    scale = tl.full([ROWS], 1.0, ACC)
    if tl.max(unit.to(tl.int32), 0) > 0:
        a = value.to(ACC)
        square = tl.sum(a * a, 1)
        for start in range(COLUMNS, width, COLUMNS):
            rest = exists[:, None] & (start + column < width)
            a = tl.load(x + start + column, mask=rest, other=0.0).to(ACC)
            square += tl.sum(a * a, 1)
        scale = tl.where(unit, inverse(root(square)), 1.0)
    scale = scale[:, None]
    tl.store(to + column, (value.to(ACC) * scale).to(out.dtype.element_ty), mask=mask)
    for start in range(COLUMNS, width, COLUMNS):
        rest = exists[:, None] & (start + column < width)
        a = tl.load(x + start + column, mask=rest, other=0.0).to(ACC)
        tl.store(to + start + column, (a * scale).to(out.dtype.element_ty), mask=rest)


@triton.jit
def separator_gradient(
    grad,
    separators,
    out,
    tile,
    count,
    tokens,
    width,
    grad_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ACC: tl.constexpr,
):
    """Sum over all separators for one tile of columns, always in the same order."""
    column = (tile * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    total = tl.zeros([ROWS, COLUMNS], dtype=ACC)
    for start in range(0, count, ROWS):
        i = start + tl.arange(0, ROWS)
        n = tl.load(separators + i, mask=i < count, other=-1)
        exists = (n >= 0) & (n < tokens)
        g = grad + (n.to(tl.int64) * grad_stride)[:, None] + column
        total += tl.load(g, mask=exists[:, None] & (column < width), other=0.0).to(ACC)
    result = tl.sum(total, 0)[None, :]
    tl.store(out + column, result.to(out.dtype.element_ty), mask=column < width)


@triton.jit
def row_gradients(
    grad,
    compressed,
    position,
    to_static,
    to_compressed,
    first,
    rows,
    static_rows,
    queries,
    tokens,
    width,
    grad_stride,
    frame_stride,
    query_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDE: tl.constexpr,
    ACC: tl.constexpr,
):
    """Rows of [static; compressed] from `first` on. With n = max(|x|, eps) and y = x / n:
    dx = (g - y <y, g>) / n, below eps g / n; a static row's gradient is copied."""
    row = first + tl.arange(0, ROWS)
    n = tl.load(position + row, mask=row < rows, other=-1)
    kept = ((n >= 0) & (n < tokens))[:, None]
    unit = row >= static_rows
    place = tl.where(unit, row - static_rows, 0)
    x = compressed + compressed_offset(place, queries, frame_stride, query_stride)
    g = grad + n.to(tl.int64) * grad_stride
    if WIDE:
        x = tl.multiple_of(x, 16)
        g = tl.multiple_of(g, 16)
    x = x[:, None]
    g = g[:, None]
    own = tl.where(
        unit, to_compressed + place.to(tl.int64) * width, to_static + row.to(tl.int64) * width
    )
    to = own[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    inside = (row < rows)[:, None] & (column < width)
    normalized = kept & unit[:, None]
    g_tile = tl.load(g + column, mask=inside & kept, other=0.0)
    x_tile = tl.zeros([ROWS, COLUMNS], dtype=g_tile.dtype)
    along = tl.zeros([ROWS], dtype=ACC)
    scale = tl.full([ROWS], 1.0, ACC)
    if first + ROWS > static_rows:  # not a copy alone
        x_tile = tl.load(x + column, mask=inside & normalized, other=0.0)
        a = x_tile.to(ACC)
        square = tl.sum(a * a, 1)
        dot = tl.sum(a * g_tile.to(ACC), 1)
        for start in range(COLUMNS, width, COLUMNS):
            rest = (row < rows)[:, None] & (start + column < width) & normalized
            a = tl.load(x + start + column, mask=rest, other=0.0).to(ACC)
            square += tl.sum(a * a, 1)
            dot += tl.sum(a * tl.load(g + start + column, mask=rest, other=0.0).to(ACC), 1)
        norm = root(square)
        along = tl.where(norm < EPS, 0.0, dot / tl.where(norm < EPS, 1.0, square))
        scale = tl.where(unit, inverse(norm), 1.0)
    along = along[:, None]
    scale = scale[:, None]
    value = (g_tile.to(ACC) - along * x_tile.to(ACC)) * scale
    tl.store(to + column, value.to(to_static.dtype.element_ty), mask=inside)
    for start in range(COLUMNS, width, COLUMNS):
        rest = (row < rows)[:, None] & (start + column < width)
        a = tl.load(x + start + column, mask=rest & normalized, other=0.0).to(ACC)
        b = tl.load(g + start + column, mask=rest & kept, other=0.0).to(ACC)
        value = (b - along * a) * scale
        tl.store(to + start + column, value.to(to_static.dtype.element_ty), mask=rest)


@triton.jit(
    do_not_specialize=LENGTHS,
    do_not_specialize_on_alignment=NUMBERS,
)
def pack_backward(
    grad,  # [N, D], rows `grad_stride` apart
    compressed,  # [M, K, D]
    position,  # int32 [Ns + M*K]
    separators,  # int32 [S]
    to_static,  # [Ns, D]
    to_compressed,  # [M, K, D]
    to_separator,  # [D]
    tiles,  # programs that sum up separators: the first ones, as they take longest
    begin,  # rows of [static; compressed] whose gradient is wanted
    end,
    static_rows,
    queries,
    count,
    tokens,
    width,
    grad_stride,
    frame_stride,
    query_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SEPARATOR_ROWS: tl.constexpr,
    SEPARATOR_COLUMNS: tl.constexpr,
    WIDE: tl.constexpr,
    ACC: tl.constexpr,
):
    program = tl.program_id(0)
    if program < tiles:
        separator_gradient(
            grad,
            separators,
            to_separator,
            program,
            count,
            tokens,
            width,
            grad_stride,
            SEPARATOR_ROWS,
            SEPARATOR_COLUMNS,
            ACC,
        )
    else:
        row_gradients(
            grad,
            compressed,
            position,
            to_static,
            to_compressed,
            begin + (program - tiles) * ROWS,
            end,
            static_rows,
            queries,
            tokens,
            width,
            grad_stride,
            frame_stride,
            query_stride,
            ROWS,
            COLUMNS,
            WIDE,
            ACC,
        )

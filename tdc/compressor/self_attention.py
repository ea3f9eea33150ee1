# SPDX-License-Identifier: Apache-2.0
"""Self-attention of the Q-Former: torch's, or flash-attn's variable-length kernels.

Without padding ``scaled_dot_product_attention`` takes its own flash kernel. Padded questions need a
mask, which that kernel does not know; flash-attn's kernels take the rows of every entry behind each
other instead and compute no padding.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)


@functools.cache
def _why_not_on(device: torch.device) -> str | None:
    if importlib.util.find_spec("flash_attn") is None:
        return "flash-attn is not installed"
    if device.type != "cuda":
        return f"flash-attn runs on CUDA devices only, not on {device.type!r}"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"flash-attn needs compute capability 8.0, this device has {major}.{minor}"
    try:
        _varlen()
    except (ImportError, AttributeError) as error:
        return f"flash-attn does not load: {error}"
    return None


@functools.cache
def _varlen() -> Callable[..., Tensor]:
    return importlib.import_module("flash_attn").flash_attn_varlen_func


def why_not_flash(
    device: torch.device | str, dtype: torch.dtype = torch.bfloat16, dim: int = 64
) -> str | None:
    """None where padded self-attention runs on flash-attn, else the reason."""
    reason = _why_not_on(torch.device(device))
    if reason is None and dtype not in HALF:
        reason = f"flash-attn computes in half precision only, not in {dtype}"
    if reason is None and dim > 256:
        reason = f"flash-attn takes heads of at most 256, not of {dim}"
    return reason


def self_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """``[M, H, R, d]`` queries over ``[M, H, L, d]`` keys and values of the same entry.

    Args:
        mask: bool ``[M, 1, 1, L]``, False on padding; None: no padding. Outputs of padded rows mean
            nothing.

    Returns:
        ``[M, H, R, d]``.
    """
    if mask is None or torch.compiler.is_compiling():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    if why_not_flash(q.device, q.dtype, q.shape[-1]) is not None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return _flash(q, k, v, mask[:, 0, 0])


def _flash(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """The same on the rows that are ``seen [M, L]``; zeros for the others."""
    asking = seen[:, : q.shape[2]]  # the queries stand first and are never padding
    out = torch.zeros_like(q.transpose(1, 2))  # [M, R, H, d]
    out[asking] = _varlen()(
        *(x.transpose(1, 2)[rows] for x, rows in ((q, asking), (k, seen), (v, seen))),
        _prefix_sums(asking),
        _prefix_sums(seen),
        asking.shape[1],
        seen.shape[1],
    )
    return out.transpose(1, 2)


def _prefix_sums(seen: Tensor) -> Tensor:
    return F.pad(seen.sum(1).cumsum(0), (1, 0)).int()

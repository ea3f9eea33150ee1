# SPDX-License-Identifier: Apache-2.0
"""The context's rows gathered into order, compressed ones at unit length, in plain PyTorch."""

from __future__ import annotations

import torch

EPS = 1e-12  # smallest norm divided by, as in torch.nn.functional.normalize


def normalize(compressed: torch.Tensor) -> torch.Tensor:
    """Unit length over the last dimension, in the dtype of accumulation (fp64 or fp32)."""
    acc = torch.float64 if compressed.dtype == torch.float64 else torch.float32
    x = compressed.to(acc)
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(EPS)


def pack_context(
    static: torch.Tensor,
    compressed: torch.Tensor,
    separator: torch.Tensor,
    source: torch.Tensor,
    position: torch.Tensor,
    separators: torch.Tensor,
) -> torch.Tensor:
    del position, separators  # the way back: autograd finds it alone
    rows = torch.cat(
        [
            static,
            normalize(compressed).to(static.dtype).flatten(0, 1),  # [M*K, D]
            separator[None],
        ]
    )
    # Indexing, not index_select: its backward sums repeated rows in a fixed order on CUDA as well.
    return rows[source]

# SPDX-License-Identifier: Apache-2.0
"""The judge: against fp64, ours may err at most twice as much as plain PyTorch in the same dtype,
plus one unit in the last place of the largest value. No constant is tuned by hand."""

from __future__ import annotations

import torch


def judge(ours: torch.Tensor, plain: torch.Tensor, exact: torch.Tensor) -> None:
    """``exact`` is the fp64 result; ``ours`` and ``plain`` hold the same thing in their dtypes."""
    assert exact.dtype == torch.float64
    assert ours.shape == exact.shape == plain.shape
    finite = exact.isfinite()
    torch.testing.assert_close(ours.double()[~finite], exact[~finite], equal_nan=True)
    assert ours.isfinite()[finite].all()
    if not finite.any():
        return
    error = (ours.double() - exact)[finite].abs().max().item()
    allowed = 2 * (plain.double() - exact)[finite].abs().max().item()
    ulp = torch.finfo(ours.dtype).eps * exact[finite].abs().max().item()
    assert error <= allowed + ulp, f"error {error:.3e}, allowed {allowed:.3e} + {ulp:.3e}"

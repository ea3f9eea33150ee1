# SPDX-License-Identifier: Apache-2.0
"""Self-attention of padded questions: flash-attn's kernels where they are, torch's elsewhere."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

from tdc.compressor import self_attention as attention


def padded(rows: int = 4) -> tuple[torch.Tensor, ...]:
    q, k, v = (torch.randn(3, 2, n, 8) for n in (rows, 6, 6))
    mask = torch.ones(3, 1, 1, 6, dtype=torch.bool)
    mask[0, ..., 5:] = mask[2, ..., 4:] = False
    return q, k, v, mask


def varlen(q, k, v, cu_q, cu_k, longest_q, longest_k):
    """flash-attn's function as documented, entry by entry."""
    assert cu_q.dtype == cu_k.dtype == torch.int32
    assert longest_q >= cu_q.diff().max() and longest_k >= cu_k.diff().max()
    out = []
    for i in range(len(cu_q) - 1):
        part = [x[cu[i] : cu[i + 1]].transpose(0, 1) for x, cu in ((q, cu_q), (k, cu_k), (v, cu_k))]
        out.append(F.scaled_dot_product_attention(*part).transpose(0, 1))
    return torch.cat(out)


@pytest.mark.parametrize("rows", [4, 6])
def test_variable_lengths_equal_the_mask(monkeypatch, rows):
    monkeypatch.setattr(attention, "why_not_flash", lambda *_: None)
    monkeypatch.setattr(attention, "_varlen", lambda: varlen)
    q, k, v, mask = padded(rows)
    got = attention.self_attention(q, k, v, mask)
    wanted = F.scaled_dot_product_attention(q, k, v, mask)
    seen = mask[:, 0, 0, :rows]
    torch.testing.assert_close(got.transpose(1, 2)[seen], wanted.transpose(1, 2)[seen])


def test_no_padding_is_torchs(monkeypatch):
    monkeypatch.setattr(attention, "why_not_flash", lambda *_: None)
    monkeypatch.setattr(attention, "_varlen", None)  # not called
    q, k, v, _ = padded()
    wanted = F.scaled_dot_product_attention(q, k, v)
    assert torch.equal(attention.self_attention(q, k, v, None), wanted)


def test_reasons(monkeypatch):
    attention._why_not_on.cache_clear()
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    monkeypatch.setattr(attention.importlib.util, "find_spec", lambda name: None)
    assert attention.why_not_flash("cpu") == "flash-attn is not installed"
    attention._why_not_on.cache_clear()
    monkeypatch.setattr(attention.importlib.util, "find_spec", lambda name: ModuleType(name))
    assert "CUDA devices only" in attention.why_not_flash("cpu")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "needs compute capability 8.0, this device has 7.5" in attention.why_not_flash("cuda")
    attention._why_not_on.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert "does not load" in attention.why_not_flash("cuda")
    attention._why_not_on.cache_clear()
    monkeypatch.setattr(attention, "_varlen", lambda: varlen)
    assert attention.why_not_flash("cuda") is None
    assert "half precision only" in attention.why_not_flash("cuda", torch.float32)
    assert "at most 256" in attention.why_not_flash("cuda", torch.float16, 512)
    attention._why_not_on.cache_clear()

# SPDX-License-Identifier: Apache-2.0
"""The arguments of ``cross_attention``: kinds and shapes, and numbers where they are at hand."""

from __future__ import annotations

import torch

from tdc_kernels import _checks


def check(
    query, visual, audio, w_key, b_key, w_value, b_value, num_heads, w_key_audio, w_value_audio
) -> None:
    """Kinds and shapes of the floating arguments."""
    _checks.floating("query", query, "[M, Q, H*d]", ndim=3)
    _checks.floating("visual", visual, "[F, Nv, D]", ndim=3)
    _checks.same_device("visual", visual, query.device)
    _checks.count("num_heads", num_heads, 1)
    width, depth = query.shape[2], visual.shape[2]
    if width % num_heads != 0:
        raise ValueError(f"num_heads: expected a divisor of query's width {width}, got {num_heads}")
    weights = [("w_key", w_key, depth, "visual's D"), ("w_value", w_value, depth, "visual's D")]
    if (w_key_audio is None) != (w_value_audio is None) or (
        audio is None and w_key_audio is not None
    ):
        raise ValueError("w_key_audio, w_value_audio: expected both and audio, or neither")
    if audio is not None:
        _checks.floating("audio", audio, "[F, Na, D]", ndim=3)
        _checks.shape("audio", audio, 0, visual.shape[0], "visual's F")
        _checks.same_device("audio", audio, query.device)
        if w_key_audio is None:
            _checks.shape("audio", audio, 2, depth, "visual's D")
        else:
            weights += [
                ("w_key_audio", w_key_audio, audio.shape[2], "audio's width"),
                ("w_value_audio", w_value_audio, audio.shape[2], "audio's width"),
            ]
    for name, weight, depth, what in weights:
        _checks.floating(name, weight, "[H*d, D]", ndim=2)
        _checks.shape(name, weight, 0, width, "query's H*d")
        _checks.shape(name, weight, 1, depth, what)
        _checks.same_device(name, weight, query.device)
    for name, bias in (("b_key", b_key), ("b_value", b_value)):
        if bias is not None:
            _checks.floating(name, bias, "[H*d]", ndim=1)
            _checks.shape(name, bias, 0, width, "query's H*d")
            _checks.same_device(name, bias, query.device)


def check_rows(query, visual, audio, index, visual_lengths, audio_lengths, mask) -> None:
    """Frame number and valid lengths of every row."""
    if index is None:
        _checks.shape("query", query, 0, visual.shape[0], "visual's F, as index is None")
    else:
        _checks.integers("index", index, "[M]", query.device)
        _checks.shape("index", index, 0, query.shape[0], "query's M")
    if audio is None and audio_lengths is not None:
        raise ValueError("audio_lengths: expected None without audio, got a tensor")
    for name, lengths in (("visual_lengths", visual_lengths), ("audio_lengths", audio_lengths)):
        if lengths is not None:
            _checks.integers(name, lengths, "[F]", query.device)
            _checks.shape(name, lengths, 0, visual.shape[0], "visual's F")
    if mask is not None:
        if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool or mask.ndim != 2:
            raise TypeError(
                f"mask: expected a bool tensor [F, Nv + Na], got {_checks.describe(mask)}"
            )
        tokens = visual.shape[1] + (0 if audio is None else audio.shape[1])
        _checks.shape("mask", mask, 0, visual.shape[0], "visual's F")
        _checks.shape("mask", mask, 1, tokens, "visual's Nv plus audio's Na")
        _checks.same_device("mask", mask, query.device)


def check_numbers(visual, audio, index, visual_lengths, audio_lengths) -> None:
    """What can be known of frame numbers and lengths without waiting for a GPU."""
    if index is not None:
        _checks.numbers("index", index, 0, visual.shape[0] - 1)
    if visual_lengths is not None:
        _checks.numbers("visual_lengths", visual_lengths, 0, visual.shape[1])
    if audio_lengths is not None:
        _checks.numbers("audio_lengths", audio_lengths, 0, audio.shape[1])

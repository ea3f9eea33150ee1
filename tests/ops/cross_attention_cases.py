# SPDX-License-Identifier: Apache-2.0
"""Arguments of ``cross_attention`` and two ways to say what must come out."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st

HEADS = 2
FLOATS = (
    "query",
    "visual",
    "audio",
    "w_key",
    "b_key",
    "w_value",
    "b_value",
    "w_key_audio",
    "w_value_audio",
)
strategies = pytest.mark.parametrize("strategy", ["project", "absorb"])


def case(
    rows=5,
    frames=3,
    queries=4,
    visual=7,
    audio=5,
    width=16,
    depth=12,
    indexed=True,
    audio_depth=None,
):
    """Arguments in fp64; the weights scaled as a trained layer's."""

    def weight(depth):
        return torch.randn(width, depth) / math.sqrt(depth)

    args = {
        "query": torch.randn(rows, queries, width),
        "visual": torch.randn(frames, visual, depth),
        "audio": torch.randn(frames, audio, audio_depth or depth) if audio is not None else None,
        "w_key": weight(depth),
        "b_key": torch.randn(width),
        "w_value": weight(depth),
        "b_value": torch.randn(width),
        "index": torch.randint(frames, (rows,)) if indexed else None,
    }
    if audio is not None and audio_depth is not None:
        args |= {"w_key_audio": weight(audio_depth), "w_value_audio": weight(audio_depth)}
    return cast(args, torch.float64)


def cast(args, dtype=None, device=None):
    return {
        k: v.to(device, dtype if k in FLOATS else v.dtype) if isinstance(v, torch.Tensor) else v
        for k, v in args.items()
    }


def projections(a, tokens, name, audio):
    """Keys or values of some tokens."""
    weight = a.get(f"w_{name}_audio") if audio else None
    return F.linear(tokens, a["w_" + name] if weight is None else weight, a["b_" + name])


def exact(a, visual_lengths=None, audio_lengths=None, mask=None):
    """One row and one head at a time over the tokens that count, in fp64; differentiable."""
    a = cast(a, torch.float64)
    dim = a["query"].shape[2] // HEADS
    rows = []
    for m in range(len(a["query"])):
        f = m if a["index"] is None else int(a["index"][m])
        seen = (
            None
            if mask is None
            else mask[f].split([a["visual"].shape[1], mask.shape[1] - a["visual"].shape[1]])
        )
        found = {"key": [], "value": []}
        for i, (name, lengths) in enumerate((("visual", visual_lengths), ("audio", audio_lengths))):
            if a[name] is None:
                continue
            stop = a[name].shape[1] if lengths is None else int(lengths[f])
            tokens = a[name][f, :stop]
            tokens = tokens if seen is None else tokens[seen[i][:stop]]
            for kind, parts in found.items():
                parts.append(projections(a, tokens, kind, name == "audio"))
        key, value = (torch.cat(parts) for parts in found.values())
        if len(key) == 0:
            rows.append(a["query"][m] * 0)
            continue
        heads = []
        for h in range(HEADS):
            part = slice(h * dim, (h + 1) * dim)
            score = a["query"][m, :, part] @ key[:, part].T / math.sqrt(dim)
            heads.append(score.softmax(1) @ value[:, part])
        rows.append(torch.cat(heads, 1))
    return torch.stack(rows) if rows else a["query"] * 1


def plain(a):
    """What one would write: project, concatenate, gather, scaled_dot_product_attention."""

    def heads(name):
        parts = [projections(a, a["visual"], name, False)]
        parts += [] if a["audio"] is None else [projections(a, a["audio"], name, True)]
        x = torch.cat(parts, 1)
        x = x if a["index"] is None else x[a["index"]]
        return x.unflatten(2, (HEADS, -1)).transpose(1, 2)

    query = a["query"].unflatten(2, (HEADS, -1)).transpose(1, 2)
    out = F.scaled_dot_product_attention(query, heads("key"), heads("value"))
    return out.transpose(1, 2).flatten(2)


def cast_device(args, device):
    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in args.items()}


def draw_rows(data, args, visual, audio, frames, kinds):
    """Lengths (tokens beyond them become NaN) and a mask."""

    def lengths(name, tokens):
        if name not in kinds or tokens is None:
            return None
        several = data.draw(st.lists(st.integers(0, tokens), min_size=frames, max_size=frames))
        for f, length in enumerate(several):
            args[name][f, length:] = math.nan
        return torch.tensor(several, dtype=torch.int32)

    mask = None
    if "mask" in kinds:
        mask = torch.rand(frames, visual + (audio or 0)) < 0.6
    return {
        "visual_lengths": lengths("visual", visual),
        "audio_lengths": lengths("audio", audio),
        "mask": mask,
    }

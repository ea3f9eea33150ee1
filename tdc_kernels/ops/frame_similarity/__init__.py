# SPDX-License-Identifier: Apache-2.0
"""``frame_similarity``: how alike neighbouring frames are."""

from __future__ import annotations

from typing import Any

import torch

from tdc_kernels import _checks, registry
from tdc_kernels.ops.backends import implement_fused
from tdc_kernels.ops.frame_similarity import reference
from tdc_kernels.ops.once import once

OP = "frame_similarity"


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """fp64 for fp64, fp32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def fake(
    features: torch.Tensor, cu_frames: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    frames = features.shape[0]
    sums = features.new_empty((frames, 2), dtype=accumulation_dtype(features.dtype))
    return features.new_empty((torch.sym_max(frames - 1, 0),), dtype=torch.float32), sums


def fake_backward(grad, features, sums, cu_frames=None) -> torch.Tensor:
    return features.new_empty(features.shape)


# `features` are [F, N] with dense rows here; `sums` [F, 2] are <x_{t-1}, x_t> (0 for the first
# frame) and |x_t|^2 in the accumulation dtype, for the backward.
registry.define(
    OP,
    "(Tensor features, Tensor? cu_frames=None) -> (Tensor, Tensor)",
    fake,
    backward="(Tensor grad, Tensor features, Tensor sums, Tensor? cu_frames=None) -> Tensor",
    fake_backward=fake_backward,
)
registry.implement(OP, "reference", reference.frame_similarity)
implement_fused(OP)


class FrameSimilarity(torch.autograd.Function):
    """The gradient of the compiled backends: one more pass over the features."""

    @staticmethod
    def forward(ctx: Any, backend: str, features: torch.Tensor, cu_frames: torch.Tensor | None):
        similarity, sums = registry.entry(OP, backend).handle(features, cu_frames)
        ctx.backend = backend
        ctx.save_for_backward(features, sums, cu_frames)
        ctx.mark_non_differentiable(sums)
        return similarity, sums

    @staticmethod
    @once(OP)
    def backward(ctx: Any, grad: torch.Tensor, _: Any):
        operator: Any = registry.entry(OP, ctx.backend).backward
        return None, operator(grad, *ctx.saved_tensors), None


def as_rows(features: torch.Tensor) -> torch.Tensor:
    """``[F, ...] -> [F, N]`` with dense rows: a view where memory allows it, whatever the order of
    a frame's dimensions (no sum depends on it), else a copy."""
    if not torch.compiler.is_compiling() and not features.is_contiguous():
        inner = sorted(range(1, features.ndim), key=lambda d: features.stride(d), reverse=True)
        features = features.permute(0, *inner)
    rows = features.flatten(1)
    return rows if rows.shape[1] <= 1 or rows.stride(1) == 1 else rows.contiguous()


def frame_similarity(
    features: torch.Tensor, cu_frames: torch.Tensor | None = None, *, backend: str | None = None
) -> torch.Tensor:
    """Cosine similarity of each frame and the next, over all of a frame's features.

    ``s[t] = <x_t, x_{t+1}> / (max(|x_t|, 1e-8) max(|x_{t+1}|, 1e-8))``, the frame's feature map
    taken as one vector. Low values are the scene boundaries of the paper's segmentation.

    Args:
        features: ``[F, ...]``, fp16, bf16, fp32, fp64, any strides (frames with gaps between their
            values are copied first); frames of all videos back to back.
        cu_frames: int32 or int64 ``[B+1]``, prefix sums of the videos' lengths; None for one video.
            Empty videos are fine.
        backend: a backend's name; None chooses (see ``tdc_kernels.registry``).

    Returns:
        fp32 ``[max(F-1, 0)]`` for every input dtype, accumulated in fp32 (fp64 for fp64 input);
        ``+inf`` where the pair straddles two videos. Differentiable in ``features``, once.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or shape.
        RuntimeError: the backend asked for cannot run this call.
    """
    _checks.floating("features", features, "[F, ...] with at least 2 dimensions", least=2)
    if cu_frames is not None:
        cu_frames = _checks.prefix_sums(cu_frames, (features.shape[0],), features.device)
    return registry.call(OP, backend, as_rows(features), cu_frames, function=FrameSimilarity)[0]

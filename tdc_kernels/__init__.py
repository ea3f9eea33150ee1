# SPDX-License-Identifier: Apache-2.0
"""The ops of Temporal Dynamic Context; needs torch and nothing else. See docs/ops for formulas."""

from tdc_kernels.ops.anchor_queries import anchor_queries
from tdc_kernels.ops.cross_attention import cross_attention
from tdc_kernels.ops.frame_similarity import frame_similarity
from tdc_kernels.ops.pack_context import pack_context
from tdc_kernels.ops.scene_boundaries import scene_boundaries
from tdc_kernels.ops.segment_scenes import segment_scenes
from tdc_kernels.patch import Acceleration, accelerate
from tdc_kernels.plan import ContextPlan, context_length, plan_context
from tdc_kernels.reduce import reduce_frames
from tdc_kernels.registry import backends, use_backend

__version__ = "0.2.0"

__all__ = [
    "Acceleration",
    "ContextPlan",
    "accelerate",
    "anchor_queries",
    "backends",
    "context_length",
    "cross_attention",
    "frame_similarity",
    "pack_context",
    "plan_context",
    "reduce_frames",
    "scene_boundaries",
    "segment_scenes",
    "use_backend",
]

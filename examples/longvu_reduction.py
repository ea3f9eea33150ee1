# SPDX-License-Identifier: Apache-2.0
"""LongVU's frame reduction: drop frames whose DINOv2 features look like their window's others."""

import torch

from tdc_kernels import reduce_frames
from tdc_kernels.nn import FrameReducer

torch.manual_seed(0)
# 64 frames of 144 DINOv2 tokens: four still scenes of 12 frames, then 16 frames of fast motion.
stills = torch.randn(4, 144, 384).repeat_interleave(12, dim=0)
dino = torch.cat([stills + 0.1 * torch.randn(48, 144, 384), torch.randn(16, 144, 384)])
siglip = torch.randn(64, 144, 1152)

kept = reduce_frames(dino, 0.83, window=8)
print(f"kept {len(kept)} of 64 frames: {kept.tolist()}")
print(f"still part: {int((kept < 48).sum())} of 48, motion: {int((kept >= 48).sum())} of 16")

previous = reduce_frames(dino, 0.83, window=8, rule="previous")  # one pass by frame_similarity
print(f"compared with the frame before only: {len(previous)} of 64 frames")

frames, index = FrameReducer(threshold=0.83, window=8, max_frames=16)(dino)
print(f"as a layer, at most 16: DINOv2 {list(frames.shape)}, SigLIP {list(siglip[index].shape)}")

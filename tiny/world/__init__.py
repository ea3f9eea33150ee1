# SPDX-License-Identifier: Apache-2.0
"""A small audio-visual world: clips from seeds, with everything in them known.

Data for training a small model on two CPU cores, and truth for segmentation and tests. See
docs/world.md.
"""

from tdc.world.captions import CLIP_PROMPT, FRAME_PROMPT, clip_caption, frame_caption
from tdc.world.clips import UNITS, Clip, Scene, Thing
from tdc.world.dataset import write_dataset
from tdc.world.frame_questions import ask_frame
from tdc.world.labels import PatchLabels, patch_labels
from tdc.world.make import KINDS, make_clip
from tdc.world.questions import all_questions, ask
from tdc.world.render import render_frame, render_frames
from tdc.world.scores import BoundaryScores, boundary_scores
from tdc.world.sounds import render_sound
from tdc.world.splits import SPLITS, split_of
from tdc.world.wording import Question
from tdc.world.words import vocabulary
from tdc.world.write import write_clip

__all__ = [
    "CLIP_PROMPT",
    "FRAME_PROMPT",
    "KINDS",
    "SPLITS",
    "UNITS",
    "BoundaryScores",
    "Clip",
    "PatchLabels",
    "Question",
    "Scene",
    "Thing",
    "all_questions",
    "ask",
    "ask_frame",
    "boundary_scores",
    "clip_caption",
    "frame_caption",
    "make_clip",
    "patch_labels",
    "render_frame",
    "render_frames",
    "render_sound",
    "split_of",
    "vocabulary",
    "write_clip",
    "write_dataset",
]

# SPDX-License-Identifier: Apache-2.0
"""A small audio-visual world: synthetic clips from seeds, with complete ground truth.

Training data for a small model on two CPU cores, and ground truth for segmentation and tests. See
docs/world.md.
"""

from ..eval.boundary_scores import BoundaryScores, boundary_scores
from .captions import CLIP_PROMPT, FRAME_PROMPT, clip_caption, frame_caption
from .clips import UNITS, Clip, Scene, Thing
from .dataset import write_dataset
from .frame_questions import ask_frame
from .labels import PatchLabels, patch_labels
from .make import KINDS, make_clip
from .questions import all_questions, ask
from .render import render_frame, render_frames
from .sounds import render_sound
from .splits import SPLITS, split_of
from .wording import Question
from .words import vocabulary
from .write import write_clip

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

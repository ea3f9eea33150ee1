# SPDX-License-Identifier: Apache-2.0
"""Question-independent features of a batch of videos.

Towers, connector, sound and cuts do not depend on the question: ``encode_video`` computes a
``VideoFeatures`` once, ``build_context`` turns it into context tokens for any number of questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from ..media.sampling import sample_indices
from .segment import Segmentation, segment
from .visual_tokens import VisualTokens


@dataclass(frozen=True)
class VideoFeatures:
    """Features of a batch of videos (frames behind each other) and of single images.

    Attributes:
        visual: frame tokens (SVA grid, crop, newline column), ``visual.final()`` as ``[F, N, D]``.
        visual_lengths: valid visual tokens of each frame, ``F`` ints.
        audio: ``[F, Na, Ca]`` BEATs tokens before the audio projection, or None without sound.
        audio_lengths: valid audio tokens of each frame (0 = no sound there), ``F`` ints.
        segmentation: similarities, cuts and ``cu_frames`` of the videos.
        times: seconds of each frame from its video's start, ``F`` floats.
        images: ``[N_i, D]`` tokens of every single image.
        kinds: ``"video"`` or ``"image"`` for each medium, in the order of the placeholders.
        dinov2: ``[F, T, C]`` the cut's features, kept only on request: choosing other frames of the
            same video later (``sample``) needs similarities of pairs that were not neighbours.
    """

    visual: VisualTokens
    visual_lengths: tuple[int, ...]
    segmentation: Segmentation
    times: tuple[float, ...]
    audio: Tensor | None = None
    audio_lengths: tuple[int, ...] = ()
    images: tuple[Tensor, ...] = ()
    kinds: tuple[str, ...] = ("video",)
    dinov2: Tensor | None = field(default=None, repr=False)

    @property
    def cu_frames(self) -> tuple[int, ...]:
        return self.segmentation.cu_frames

    @property
    def device(self) -> torch.device:
        return self.visual.values.device

    @property
    def num_videos(self) -> int:
        return len(self.cu_frames) - 1

    def static_lengths(self) -> list[int]:
        """Tokens of each frame when it stays whole: visual plus audio."""
        audio = self.audio_lengths or (0,) * len(self.visual_lengths)
        return [v + a for v, a in zip(self.visual_lengths, audio, strict=True)]

    def to(self, device: torch.device | str) -> VideoFeatures:
        """The same on another device; itself when it is there already."""
        if self.device == torch.device(device):
            return self
        return replace(
            self,
            visual=self.visual.to(device),
            audio=None if self.audio is None else self.audio.to(device),
            images=tuple(image.to(device) for image in self.images),
            dinov2=None if self.dinov2 is None else self.dinov2.to(device),
        )

    def take(self, groups: Sequence[Sequence[int]], segmentation: Segmentation) -> VideoFeatures:
        """New videos made of this one's frames: one video per group of frame numbers."""
        rows = [row for group in groups for row in group]
        frames: Tensor | slice = torch.tensor(rows, dtype=torch.long, device=self.device)
        if rows and rows == list(range(rows[0], rows[-1] + 1)):
            frames = slice(rows[0], rows[-1] + 1)  # a view where possible

        return replace(
            self,
            visual=self.visual.select(frames),
            visual_lengths=tuple(self.visual_lengths[r] for r in rows),
            audio=None if self.audio is None else self.audio[frames],
            audio_lengths=tuple(self.audio_lengths[r] for r in rows) if self.audio_lengths else (),
            times=tuple(self.times[r] for r in rows),
            segmentation=segmentation,
            images=(),
            kinds=("video",) * len(groups),
            dinov2=None if self.dinov2 is None else self.dinov2[frames],
        )

    def split(self, num_segments: int, num_scenes: int, threshold: float | None) -> VideoFeatures:
        """One video cut into equal parts along time, as a batch; nothing is encoded again.

        Args:
            num_segments: parts; a video with fewer frames gives one part per frame.
            num_scenes: scenes per part.
        """
        self._require_one_video("split")
        total = self.cu_frames[-1]
        parts = min(num_segments, total)
        edges = [round(i * total / parts) for i in range(parts + 1)]
        groups = [range(a, b) for a, b in pairwise(edges)]
        return self.take(groups, self._cut(groups, num_scenes, threshold))

    def sample(self, max_frames: int, num_scenes: int, threshold: float | None) -> VideoFeatures:
        """The same video on at most ``max_frames`` evenly spaced frames."""
        self._require_one_video("sample")
        groups = [sample_indices(self.cu_frames[-1], max_frames)]
        return self.take(groups, self._cut(groups, num_scenes, threshold))

    def select(self, videos: Sequence[int]) -> VideoFeatures:
        """Some of the videos, in any order, any number of times: for several questions about one.
        Single images are left out."""
        cuts = self.segmentation
        groups = [range(self.cu_frames[v], self.cu_frames[v + 1]) for v in videos]
        cu = (0, *accumulate(len(group) for group in groups))
        similarity = cuts.similarity.new_full((max(0, cu[-1] - 1),), float("inf"))
        for first, video in zip(cu, videos, strict=False):
            own = cuts.video_similarity(video)
            similarity[first : first + len(own)] = own
        index = torch.tensor(list(videos), dtype=torch.long, device=cuts.boundaries.device)
        return self.take(groups, Segmentation(similarity, cuts.boundaries[index], cu))

    def _cut(
        self, groups: Sequence[Sequence[int]], num_scenes: int, threshold: float | None
    ) -> Segmentation:
        if self.dinov2 is None:
            raise ValueError(
                "these features hold no DINOv2 tokens to cut other frames with; "
                "encode the video with keep_dinov2=True"
            )
        cu = [0]
        for group in groups:
            cu.append(cu[-1] + len(group))
        rows = torch.tensor([r for g in groups for r in g], device=self.dinov2.device)
        return segment(self.dinov2[rows], num_scenes, cu, threshold)

    def _require_one_video(self, what: str) -> None:
        if self.num_videos != 1:
            raise ValueError(f"{what}() takes features of one video, got {self.num_videos}")

# SPDX-License-Identifier: Apache-2.0
"""The temporal context compressor (paper, section 3.2).

Per window of a scene the first frame stays whole (static); every later frame becomes K tokens: a
Q-Former whose queries are the average-pooled static frame looks at the frame's visual and audio
tokens, with the question beside them. All dynamic frames of all videos go through it in one call.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tdc_kernels import ContextPlan, anchor_queries, pack_context

from .features import VideoFeatures
from .qformer import QFormer


class Compressor(nn.Module):
    """Static and dynamic tokens of planned windows.

    Args:
        qformer_config: BERT configuration of the Q-Former.
        hidden_size: D, width of frame tokens and context tokens.
        num_context_tokens: K.
        query_type: ``"pooled"`` or ``"learned"``.
        audio_width: width of the audio tokens; None for a model without sound.
        cross_attention_every: see :class:`tdc.qformer.QFormer`.
    """

    def __init__(
        self,
        qformer_config: Any,
        hidden_size: int,
        num_context_tokens: int = 16,
        query_type: str = "pooled",
        audio_width: int | None = None,
        cross_attention_every: int = 2,
    ) -> None:
        super().__init__()
        query_width = qformer_config.hidden_size
        self.num_context_tokens = num_context_tokens
        self.qformer = QFormer(qformer_config, hidden_size, cross_attention_every)
        self.query_proj = nn.Linear(hidden_size, query_width) if query_type == "pooled" else None
        self.query_tokens = (
            nn.Parameter(torch.zeros(num_context_tokens, query_width))
            if query_type == "learned"
            else None
        )
        self.output_proj = nn.Linear(query_width, hidden_size)
        self.separator = nn.Parameter(torch.zeros(hidden_size))
        self.audio_proj = nn.Linear(audio_width, hidden_size) if audio_width else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise what is no submodule's own."""
        nn.init.normal_(self.separator, std=self.separator.shape[-1] ** -0.5)
        if self.query_tokens is not None:
            nn.init.normal_(self.query_tokens, std=0.02)

    def forward(
        self,
        features: VideoFeatures,
        plan: ContextPlan,
        question_ids: Tensor | None = None,
        question_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Context tokens of every video of the batch.

        Args:
            features: what ``encode_video`` returned.
            plan: ``tdc_kernels.plan_context`` over the same frames, on the host.
            question_ids: ``[B, T]`` int64, one question per video; None: no question.
            question_mask: ``[B, T]`` bool, False on padding.

        Returns:
            ``[N, D]`` packed tokens and int32 ``[B+1]`` prefix sums per video.
        """
        plan = plan.to("cpu")  # read here as numbers; a device map's hooks move every argument
        visual, audio = features.visual, self.project_audio(features)
        compressed = self.compress(features, audio, plan, question_ids, question_mask)
        static = static_tokens(features, audio, plan)
        return pack_context(static, compressed, self.separator, plan.to(visual.device))

    def project_audio(self, features: VideoFeatures) -> Tensor | None:
        """``[F, Na, Ca] -> [F, Na, D]``."""
        if features.audio is None or self.audio_proj is None:
            return None
        return self.audio_proj(features.audio.to(self.audio_proj.weight.dtype))

    def compress(
        self,
        features: VideoFeatures,
        audio: Tensor | None,
        plan: ContextPlan,
        question_ids: Tensor | None,
        question_mask: Tensor | None,
    ) -> Tensor:
        """``[M, K, D]`` tokens of the M dynamic frames, before normalisation."""
        visual = features.visual
        rows = plan.dynamic.shape[0]
        if rows == 0:  # every frame is static
            return visual.new_zeros(0, self.num_context_tokens, visual.shape[-1])
        queries = self.queries(features, plan)  # [M, K, Dq]
        if question_ids is not None:
            video = video_of_frame(plan.dynamic, features.cu_frames).to(question_ids.device)
            question_ids = question_ids[video]
            if question_mask is not None:
                question_mask = None if question_mask.all() else question_mask[video]
        hidden = self.qformer(
            queries,
            visual,
            audio,
            question_ids=question_ids,
            question_mask=question_mask,
            index=plan.dynamic.to(visual.device),
            visual_lengths=lengths_tensor(features.visual_lengths, visual),
            audio_lengths=None if audio is None else lengths_tensor(features.audio_lengths, audio),
        )
        return self.output_proj(hidden)

    def queries(self, features: VideoFeatures, plan: ContextPlan) -> Tensor:
        """``[M, K, Dq]``: the queries of each dynamic frame's anchor."""
        visual, rows = features.visual, plan.dynamic.shape[0]
        if self.query_tokens is not None:
            return self.query_tokens.expand(rows, -1, -1)
        assert self.query_proj is not None
        anchors = plan.anchors.tolist()
        # Frames of one video share a length; pooling is over the valid tokens only, so a batch of
        # differently shaped videos takes one call per shape.
        by_length: dict[int, list[int]] = {}
        for row, frame in enumerate(anchors):
            by_length.setdefault(features.visual_lengths[frame], []).append(row)
        pieces, order = [], []
        for length, members in by_length.items():
            index = torch.tensor([anchors[m] for m in members], device=visual.device)
            pieces.append(
                anchor_queries(
                    visual[:, :length],
                    self.num_context_tokens,
                    self.query_proj.weight,
                    self.query_proj.bias,
                    index=index,
                )
            )
            order += members
        queries = pieces[0] if len(pieces) == 1 else torch.cat(pieces)  # [A, K, Dq]
        place = torch.empty(len(order), dtype=torch.long)
        place[torch.tensor(order)] = torch.arange(len(order))
        return queries[place[plan.dynamic_anchor.long()].to(visual.device)]


def static_tokens(features: VideoFeatures, audio: Tensor | None, plan: ContextPlan) -> Tensor:
    """``[Ns, D]``: the anchors' visual and audio tokens back to back, in anchor order."""
    visual = features.visual
    if plan.cu_static[-1] == 0:
        return visual.new_zeros(0, visual.shape[-1])
    anchors = plan.anchors.to(visual.device).long()
    tokens = visual[anchors]  # [A, Nv, D]
    keep = _valid(features.visual_lengths, plan.anchors, visual.shape[1])
    if audio is not None:
        tokens = torch.cat([tokens, audio[anchors].to(tokens.dtype)], dim=1)  # [A, Nv + Na, D]
        keep = torch.cat([keep, _valid(features.audio_lengths, plan.anchors, audio.shape[1])], 1)
    tokens = tokens.flatten(0, 1)
    if keep.all():
        return tokens
    return tokens[keep.flatten().nonzero().squeeze(1).to(visual.device)]


def _valid(lengths: tuple[int, ...], frames: Tensor, width: int) -> Tensor:
    """bool ``[A, width]`` on the host: which token slots of these frames are filled."""
    chosen = torch.tensor(lengths, dtype=torch.long)[frames.long()]
    return torch.arange(width) < chosen[:, None]


def lengths_tensor(lengths: tuple[int, ...], tokens: Tensor) -> Tensor | None:
    """int32 ``[F]`` on the tokens' device; None when every slot is filled."""
    if all(length == tokens.shape[1] for length in lengths):
        return None
    return torch.tensor(lengths, dtype=torch.int32, device=tokens.device)


def video_of_frame(frames: Tensor, cu_frames: tuple[int, ...]) -> Tensor:
    """int64: the video each packed frame number belongs to."""
    return torch.bucketize(frames.long(), torch.tensor(cu_frames[1:]), right=True)

# SPDX-License-Identifier: Apache-2.0
"""The temporal context compressor (paper, section 3.2).

Per window of a scene the first frame stays whole (static); every later frame becomes K tokens: a
Q-Former whose queries are the average-pooled static frame looks at the frame's visual and audio
tokens, with the question beside them. All dynamic frames of all videos go through it in one call.
Where the plan gives frames different numbers of tokens: see :mod:`.allocation`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tdc_kernels import ContextPlan, anchor_queries, pack_context
from tdc_kernels.ops.cross_attention.strategy import has_matrix_units
from tdc_kernels.plain import is_plain_linear, is_plain_tree

from ..encoder.features import VideoFeatures
from ..encoder.visual_tokens import VisualTokens
from ..tensor_cache import TensorCache
from .allocation import entries, slots
from .cuda_graphs import BucketedGraphs
from .frame_tokens import (
    TENSORS,
    FrameTokens,
    folded_weights,
    keys_values,
    lengths_tensor,
    readable,
    sources,
    with_ones,
)
from .qformer import QFormer
from .speedups import Speedups

GRAPHS_ON = "cuda"
# Leading dimensions of the Q-Former's inputs that vary with the video and the question.
PADDED = {
    **{"queries": 1, "question_ids": 2, "question_mask": 2, "index": 1, "group": 1},
    **{"visual": 1, "audio": 1, "visual_lengths": 1, "audio_lengths": 1},
}


class Compressor(nn.Module):
    """Static and dynamic tokens of planned windows.

    Args:
        qformer_config: BERT configuration of the Q-Former.
        hidden_size: D, width of frame tokens and context tokens.
        num_context_tokens: K.
        query_type: ``"pooled"`` or ``"learned"``.
        audio_width: width of the audio tokens; None for a model without sound.
        cross_attention_every: see :class:`tdc.compressor.qformer.QFormer`.
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
        self.speedups = Speedups()
        self.cache = TensorCache()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise what is no submodule's own."""
        nn.init.normal_(self.separator, std=self.separator.shape[-1] ** -0.5)
        if self.query_tokens is not None:
            nn.init.normal_(self.query_tokens, std=0.02)

    def train(self, mode: bool = True) -> Compressor:
        self.cache.clear()  # training needs the memory for something else
        return super().train(mode)

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
        worker, gradient = self, self._wants_gradient(features)
        if not gradient and self.speedups.fp32_on_cpu and self._is_half_on_cpu():
            worker = self.cache.get("fp32", list(self.parameters()), self._in_fp32)
            worker.speedups = self.speedups
        if gradient or not (self.speedups.fold_projector and self._readable()):
            final = features.visual.final(dtype=None if gradient else worker.separator.dtype)
            features = replace(features, visual=VisualTokens(final))
        compressed = worker.compress(features, plan, question_ids, question_mask)
        static = worker.static_tokens(features, plan)
        dtype = self.separator.dtype
        return pack_context(
            static.to(dtype), compressed.to(dtype), self.separator, plan.to(static.device)
        )

    def _is_half_on_cpu(self) -> bool:
        half = all(p.dtype in (torch.bfloat16, torch.float16) for p in self.parameters())
        on_cpu = half and self.separator.device.type == "cpu"
        return on_cpu and not has_matrix_units() and is_plain_tree(self)

    def _readable(self) -> bool:
        """Whether the cross-attentions may be used by their weights, not by calls."""
        return readable(self.qformer.layers)

    def _in_fp32(self) -> Compressor:
        """A copy to compute with, twice as large as the half-precision weights."""
        return copy.deepcopy(self).float().eval()

    def _wants_gradient(self, features: VideoFeatures) -> bool:
        if not torch.is_grad_enabled():
            return False
        inputs = (*features.visual.tensors(), features.audio)
        return any(x is not None and x.requires_grad for x in (*inputs, *self.parameters()))

    def project_audio(self, features: VideoFeatures, frames: Tensor | None = None) -> Tensor | None:
        """``[F, Na, Ca] -> [F, Na, D]``, of all frames or of those asked for."""
        if features.audio is None or self.audio_proj is None:
            return None
        audio = features.audio if frames is None else features.audio[frames]
        return self.audio_proj(audio.to(self._dtype_of(self.audio_proj)).contiguous())

    def _dtype_of(self, layer: nn.Module) -> torch.dtype:
        """What a linear layer takes; of one that is more than its weights, the compressor's."""
        return layer.weight.dtype if is_plain_linear(layer) else self.separator.dtype  # type: ignore

    def compress(
        self,
        features: VideoFeatures,
        plan: ContextPlan,
        question_ids: Tensor | None,
        question_mask: Tensor | None,
    ) -> Tensor:
        """``[M, K, D]`` tokens of the M dynamic frames, before normalisation; K as planned."""
        device = features.device
        if plan.dynamic.shape[0] == 0:  # every frame is static
            width = self.separator.shape[0]
            return self.separator.new_zeros(0, plan.num_queries, width)
        # [M]: the anchor of each dynamic frame, and per number of tokens where these differ
        asking, group = plan.anchors, plan.dynamic_anchor.long()
        if plan.compressed_lengths is not None:
            rows, _, group = entries(plan)
            asking = plan.anchors[rows]
        group = group.to(device)
        if question_ids is not None:
            video = video_of_frame(asking, features.cu_frames).to(question_ids.device)
            question_ids = question_ids[video]  # [A, T]
            if question_mask is not None:
                question_mask = None if question_mask.all() else question_mask[video]
        asked = {
            "queries": self.queries(features, plan),  # [A, K, Dq]
            "question_ids": question_ids,
            "question_mask": question_mask,
        }
        gradient = self._wants_gradient(features)
        frames = self._frame_tokens(features, plan.dynamic.to(device), gradient)
        if not gradient and self._graphs_pay(device):
            return self._graphed(asked, frames, group)
        if self.speedups.one_call:
            return self.output_proj(
                self.qformer(frames=frames, **asked, group=group, speedups=self.speedups)
            )
        members = [(group == entry).nonzero().squeeze(1) for entry in group.unique()]
        hidden = torch.cat([self._window(asked, frames, group, rows) for rows in members])
        return self.output_proj(hidden[torch.cat(members).argsort()])

    def _window(
        self, asked: Mapping[str, Tensor | None], frames: FrameTokens, group: Tensor, rows: Tensor
    ) -> Tensor:
        """``[m, K, Dq]`` of the ``rows`` of one entry, in a call of their own."""
        entry = {name: None if x is None else x[group[rows[:1]]] for name, x in asked.items()}
        group = torch.zeros_like(rows)
        return self.qformer(
            frames=frames.select(rows), **entry, group=group, speedups=self.speedups
        )

    def _frame_tokens(self, features: VideoFeatures, index: Tensor, gradient: bool) -> FrameTokens:
        """What the rows attend to. Where gradients are wanted nothing is folded."""
        speedups, visual, heard = self.speedups, features.visual, features.audio
        blocks = self.qformer.cross_attentions()
        read = not gradient and self._readable()
        folds = read and speedups.fold_audio and is_plain_linear(self.audio_proj)
        folded = self.audio_proj if folds else None
        if heard is None or folded is None:
            audio = self.project_audio(features)
        else:
            audio = self._kept("audio tokens", [heard], partial(with_ones, heard))
        weights = folded_weights(self.cache, blocks, visual.token_map, folded, audio is not None)
        frames = FrameTokens(
            visual.values,
            audio,
            index,
            lengths_tensor(features.visual_lengths, visual.values),
            None if audio is None else lengths_tensor(features.audio_lengths, audio),
            weights,
        )
        if not (read and speedups.joint_keys_values):
            return frames
        key = (tuple(index.tolist()), features.visual_lengths, features.audio_lengths)
        compute = partial(keys_values, frames, blocks)
        pairs, mask = self._kept("keys and values", sources(frames, blocks), compute, key)
        return replace(frames, keys_values=pairs, mask=mask)

    def _kept(
        self,
        name: str,
        sources: Sequence[Tensor],
        compute: Callable[[], Any],
        key: Hashable = None,
    ) -> Any:
        """What serves the next question about the same video."""
        return self.cache.get(name, sources, compute, key) if self.speedups.cache else compute()

    def _graphs_pay(self, device: torch.device) -> bool:
        # Kept keys and values belong to one video: there would be a graph for each.
        speedups = self.speedups
        wanted = speedups.cuda_graphs and device.type == GRAPHS_ON
        return wanted and not speedups.joint_keys_values and is_plain_tree(self)

    def _graphed(
        self, asked: Mapping[str, Tensor | None], frames: FrameTokens, group: Tensor
    ) -> Tensor:
        """The Q-Former and the output projection through a CUDA graph of the sizes' bucket."""
        weights = frames.weights  # alone: the graph must not keep this video alive

        def function(x: dict[str, Any]) -> Tensor:
            frames = FrameTokens(**{name: x[name] for name in TENSORS}, weights=weights)
            rest = {name: y for name, y in x.items() if name not in TENSORS}
            return self.output_proj(self.qformer(frames=frames, **rest, speedups=self.speedups))

        inputs = {**frames.tensors(), **asked, "group": group}
        if inputs["question_ids"] is not None and inputs["question_mask"] is None:
            # Padding has to be told.
            inputs["question_mask"] = torch.ones_like(inputs["question_ids"], dtype=torch.bool)
        folded = [w for layer in weights for w in layer.values()]
        graphs = self.cache.get(
            "graphs",
            [*self.parameters(), *folded],
            lambda: BucketedGraphs(function, PADDED, rows="index"),
            self.speedups,
            by_content=False,  # a graph reads the weights where they are
        )
        return graphs(inputs)

    def queries(self, features: VideoFeatures, plan: ContextPlan) -> Tensor:
        """``[A, K, Dq]``: what each anchor asks of its dynamic frames. Where the plan gives these
        different numbers of tokens, one entry per anchor and number, see :mod:`.allocation`."""
        if self.query_tokens is not None:
            return self._learned_queries(plan)
        assert self.query_proj is not None
        if not is_plain_linear(self.query_proj):  # may do something else with the same parameters
            return self._pooled_queries(features, plan)
        return self._kept(
            "queries",
            [*features.visual.tensors(), *self.query_proj.parameters()],
            lambda: self._pooled_queries(features, plan),
            (features.visual_lengths, tuple(plan.anchors.tolist()), *_asked(plan)),
        )

    def _learned_queries(self, plan: ContextPlan) -> Tensor:
        assert self.query_tokens is not None
        if plan.compressed_lengths is None:
            return self.query_tokens.expand(plan.anchors.shape[0], -1, -1)
        _, lengths, _ = entries(plan)  # pooled as if they were an anchor's tokens
        pooled = {n: anchor_queries(self.query_tokens[None], n)[0] for n in set(lengths)}
        return torch.stack([pooled[n][slots(n, plan.num_queries)] for n in lengths])

    def _pooled_queries(self, features: VideoFeatures, plan: ContextPlan) -> Tensor:
        assert self.query_proj is not None
        dtype = self._dtype_of(self.query_proj)
        anchors = plan.anchors.tolist()
        visual, frames = features.visual.values, anchors
        if features.visual.token_map is not None:
            visual, frames = self._anchor_tokens(features, plan), list(range(len(frames)))
        rows, bins = _asked(plan)
        # Frames of one video share a length; pooling is over the valid tokens only, so a batch of
        # differently shaped videos takes one call per shape (and number of bins).
        by_length: dict[tuple[int, int], list[int]] = {}
        for entry, (row, count) in enumerate(zip(rows, bins, strict=True)):
            length = features.visual_lengths[anchors[row]]
            by_length.setdefault((length, count), []).append(entry)
        pieces, order = [], []
        for (length, count), members in by_length.items():
            index = torch.tensor([frames[rows[m]] for m in members], device=visual.device)
            pooled = anchor_queries(visual[:, :length], count, index=index)
            queries = self.query_proj(pooled.to(dtype))
            ragged = plan.compressed_lengths is not None
            pieces.append(queries[:, slots(count, plan.num_queries)] if ragged else queries)
            order += members
        if len(pieces) == 1:
            return pieces[0]
        place = torch.empty(len(order), dtype=torch.long)
        place[torch.tensor(order)] = torch.arange(len(order))
        return torch.cat(pieces)[place.to(visual.device)]

    def _anchor_tokens(self, features: VideoFeatures, plan: ContextPlan) -> Tensor:
        """``[A, N, D]``; kept where they have to be computed."""
        visual, dtype = features.visual, self.separator.dtype
        compute = partial(visual.final, plan.anchors, dtype)
        if visual.token_map is None:
            return compute()
        return self._kept(
            "anchors", visual.tensors(), compute, (tuple(plan.anchors.tolist()), dtype)
        )

    def static_tokens(self, features: VideoFeatures, plan: ContextPlan) -> Tensor:
        """``[Ns, D]``: the anchors' visual and audio tokens back to back, in anchor order."""
        if plan.cu_static[-1] == 0:
            return self.separator.new_zeros(0, self.separator.shape[0])
        anchors = plan.anchors.to(features.device).long()
        tokens, audio = self._anchor_tokens(features, plan), self.project_audio(features, anchors)
        keep = _valid(features.visual_lengths, plan.anchors, tokens.shape[1])
        if audio is not None:
            tokens = torch.cat([tokens, audio.to(tokens.dtype)], dim=1)  # [A, Nv + Na, D]
            keep = torch.cat(
                [keep, _valid(features.audio_lengths, plan.anchors, audio.shape[1])], 1
            )
        tokens = tokens.flatten(0, 1)
        if keep.all():
            return tokens
        return tokens[keep.flatten().nonzero().squeeze(1).to(tokens.device)]


def _asked(plan: ContextPlan) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of each entry of the queries: its row of ``plan.anchors``, and the bins to pool that to."""
    if plan.compressed_lengths is None:
        count = plan.anchors.shape[0]
        return tuple(range(count)), (plan.num_queries,) * count
    rows, lengths, _ = entries(plan)
    return tuple(rows.tolist()), tuple(lengths)


def _valid(lengths: tuple[int, ...], frames: Tensor, width: int) -> Tensor:
    """bool ``[A, width]`` on the host: which token slots of these frames are filled."""
    chosen = torch.tensor(lengths, dtype=torch.long)[frames.long()]
    return torch.arange(width) < chosen[:, None]


def video_of_frame(frames: Tensor, cu_frames: tuple[int, ...]) -> Tensor:
    """int64: the video each packed frame number belongs to."""
    return torch.bucketize(frames.long(), torch.tensor(cu_frames[1:]), right=True)

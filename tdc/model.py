# SPDX-License-Identifier: Apache-2.0
"""``TDCForConditionalGeneration``: video, sound and question in, text out.

    pixels -> towers -> connector -> frame tokens  \\
    waveform -> BEATs -> audio tokens               > compressor -> context tokens -> language model
    question -> tokenizer                          /

``encode_video`` is everything that does not depend on the question, ``build_context`` the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    GenerationMixin,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from tdc_kernels import ContextPlan, plan_context

from .compressor.allocation import context_lengths
from .compressor.compressor import Compressor
from .config import TDCConfig
from .encoder.beats import GatedAttention
from .encoder.connector import SVAConnector, WindowKeysValues
from .encoder.features import VideoFeatures
from .encoder.video_encoder import VideoEncoder
from .processor.budget import context_room
from .processor.media_inputs import MEDIA_INPUTS
from .profiling import stage
from .prompt import Prompt, assemble, media_counts, text_token_counts


@dataclass(frozen=True)
class Context:
    """Context tokens of a batch of media.

    Attributes:
        tokens: ``[N_i, D]`` per medium, in the order of the placeholders.
        plan: how the videos' tokens were laid out (images are not part of it).
    """

    tokens: tuple[Tensor, ...]
    plan: ContextPlan | None


class UnencodedMedia(Protocol):
    """Media that come as they are and are encoded inside the model's forward (training)."""

    def encode(self, encoder: VideoEncoder) -> VideoFeatures: ...


class TDCForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Temporal Dynamic Context model (arXiv 2504.10443) around any causal LM of transformers."""

    config: TDCConfig
    config_class = TDCConfig
    main_input_name = "input_ids"
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    # Parts whose forward reads weights of their children directly: a device map keeps them whole.
    _no_split_modules = ["Compressor", "SVAConnector", "BEATs", "VisionTower"]  # noqa: RUF012

    def __init__(self, config: TDCConfig) -> None:
        super().__init__(config)
        self.video_encoder = VideoEncoder(config)
        self.compressor = Compressor(
            config.qformer_config,
            config.hidden_size,
            config.num_context_tokens,
            config.query_type,
            self.video_encoder.audio_width,
            config.cross_attention_every,
        )
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        theirs = getattr(self.language_model, "_no_split_modules", None) or []
        self._no_split_modules = [*type(self)._no_split_modules, *theirs]
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, (Compressor, GatedAttention, SVAConnector, WindowKeysValues)):
            module.reset_parameters()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.language_model.set_output_embeddings(new_embeddings)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Of the language model; see transformers' own."""
        embeddings = self.language_model.resize_token_embeddings(*args, **kwargs)
        self.config.text_config.vocab_size = embeddings.num_embeddings
        return embeddings

    # --- video to context ------------------------------------------------------------------------

    def encode_video(
        self,
        *,
        keep_dinov2: bool = False,
        input_ids: Any = None,
        attention_mask: Any = None,
        question_ids: Any = None,
        question_mask: Any = None,
        **media: Any,
    ) -> VideoFeatures:
        """Everything about the media that does not depend on a question.

        In training mode a graph is kept of those parts whose parameters require gradients. In eval
        mode none is kept unless an input requires a gradient: parameters as ``from_pretrained``
        leaves them would keep all activations of both towers alive. ``forward`` leaves the choice
        to autograd in either mode, and so does ``model.video_encoder(...)``.

        Args:
            keep_dinov2: keep the DINOv2 tokens, so that the features can be split or sampled again
                (LVCoT): ``F * 576 * C`` values more.
            input_ids, attention_mask, question_ids, question_mask: not used; the processor's whole
                output may be given.
            media: the processor's media inputs, see :meth:`VideoEncoder.towers`.

        Returns:
            Features for any number of :meth:`build_context` calls.

        Raises:
            TypeError: an unknown or a missing input.
        """
        wanted = self.training or any(getattr(x, "requires_grad", False) for x in media.values())
        with torch.set_grad_enabled(torch.is_grad_enabled() and wanted):
            return self.video_encoder(keep_dinov2=keep_dinov2, **media)

    @stage("compressor")
    def build_context(
        self,
        features: VideoFeatures,
        question_ids: Tensor | None = None,
        question_mask: Tensor | None = None,
        max_tokens: int | Sequence[int] | None = None,
    ) -> Context:
        """Context tokens for one question per video.

        Args:
            features: what :meth:`encode_video` returned.
            question_ids: int64 ``[B, T]``, Q-Former tokens of the question of each of the B videos.
            question_mask: ``[B, T]``, 0 on padding; None when nothing is padded.
            max_tokens: room for each video (one number for all or one each); None: no limit.
        """
        config = self.config
        videos: list[Tensor] = []
        plan = None
        if features.num_videos:
            plan = self.plan_context(features, max_tokens)
            device = features.device
            if not config.question_in_compressor:
                question_ids = None
            packed, _ = self.compressor(
                features,
                plan,
                None if question_ids is None else question_ids.to(device),
                None if question_mask is None else question_mask.to(device).bool(),
            )
            videos = list(packed.split(plan.cu_context.diff().tolist()))
        by_kind = {"video": iter(videos), "image": iter(features.images)}
        return Context(tuple(next(by_kind[kind]) for kind in features.kinds), plan)

    def plan_context(
        self, features: VideoFeatures, max_tokens: int | Sequence[int] | None = None
    ) -> ContextPlan:
        """Layout of the videos' context tokens; arguments as for :meth:`build_context`."""
        config = self.config
        layout = (
            features.segmentation.boundaries.cpu(),
            features.cu_frames,
            config.scene_window,
            features.static_lengths() if config.static_frames else None,
        )
        lengths = None
        if config.context_allocation == "adaptive":
            fixed = plan_context(*layout, config.num_context_tokens)
            lengths = context_lengths(
                features, fixed, config.num_context_tokens, config.most_context_tokens
            )
        return plan_context(
            *layout,
            config.most_context_tokens,
            max_tokens,
            trim=config.trim,
            compressed_lengths=lengths,
        )

    # --- prompt ----------------------------------------------------------------------------------

    def prepare_prompt(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        features: VideoFeatures | UnencodedMedia | None = None,
        question_ids: Tensor | None = None,
        question_mask: Tensor | None = None,
        padding_side: str | None = None,
        **media: Any,
    ) -> Prompt:
        """Language model inputs for prompts with media placeholders.

        Args:
            input_ids: int64 ``[B, T]``, one ``config.media_token_id`` per video or image.
            attention_mask, labels: ``[B, T]`` or None.
            features: encoded media, or what encodes itself here; None: encode ``media`` (the
                processor's media inputs), if any.
            question_ids, question_mask: ``[B, T']``, one question per prompt.

        Raises:
            InputError: a prompt that leaves no room for its video.
        """
        config = self.config
        if features is None and media.get("media_frames") is not None:
            encoded: VideoFeatures | None = self.video_encoder(**media)
        elif features is None or isinstance(features, VideoFeatures):
            encoded = features
        else:
            encoded = features.encode(self.video_encoder)
        tokens: tuple[Tensor, ...] = ()
        if encoded is not None:
            per_prompt = media_counts(input_ids, config.media_token_id)
            if sum(per_prompt) == len(encoded.kinds):  # assemble() words the error otherwise
                text = text_token_counts(input_ids, attention_mask, config.media_token_id)
                prompts, rooms = _share_room(config, encoded, per_prompt, text)
                rows = torch.tensor(prompts, dtype=torch.long)
                tokens = self.build_context(
                    encoded,
                    None if question_ids is None else question_ids[rows.to(question_ids.device)],
                    None if question_mask is None else question_mask[rows.to(question_mask.device)],
                    rooms,
                ).tokens
        embed = self.get_input_embeddings()
        return assemble(
            embed,
            input_ids,
            attention_mask,
            labels,
            tokens,
            media_token_id=config.media_token_id,
            max_length=config.max_context_length,
            padding_side=padding_side or config.padding_side,
        )

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        position_ids: Tensor | None = None,
        features: VideoFeatures | UnencodedMedia | None = None,
        question_ids: Tensor | None = None,
        question_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (and loss, where labels are given) of the assembled prompt.

        Logits are those of the assembled sequence, which is longer than ``input_ids``: every
        placeholder became its context tokens.
        """
        media = {name: kwargs.pop(name) for name in MEDIA_INPUTS if name in kwargs}
        if inputs_embeds is None:
            if input_ids is None:
                raise ValueError("forward() needs input_ids or inputs_embeds, got neither")
            prompt = self.prepare_prompt(
                input_ids,
                attention_mask,
                labels,
                features=features,
                question_ids=question_ids,
                question_mask=question_mask,
                **media,
            )
            inputs_embeds, attention_mask = prompt.inputs_embeds, prompt.attention_mask
            position_ids, labels = prompt.position_ids, prompt.labels
        return self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            labels=labels,
            **kwargs,
        )

    @torch.no_grad()
    def generate(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        features: VideoFeatures | UnencodedMedia | None = None,
        question_ids: Tensor | None = None,
        question_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Answer. Takes the options of transformers' ``generate`` (sampling, beams, streamer, ...).

        Returns:
            int64 ``[B, new tokens]``: the answers alone, without the prompt.
        """
        media = {name: kwargs.pop(name) for name in MEDIA_INPUTS if name in kwargs}
        if inputs_embeds is None:
            if input_ids is None:
                raise ValueError("generate() needs input_ids or inputs_embeds, got neither")
            prompt = self.prepare_prompt(
                input_ids,
                attention_mask,
                features=features,
                question_ids=question_ids,
                question_mask=question_mask,
                padding_side="left",  # decoding appends on the right
                **media,
            )
            inputs_embeds, attention_mask = prompt.inputs_embeds, prompt.attention_mask.long()
        self.language_model.generation_config = self.generation_config
        with stage("language model"):
            return self.language_model.generate(
                inputs_embeds=inputs_embeds, attention_mask=attention_mask, **kwargs
            )


def _share_room(
    config: TDCConfig, features: VideoFeatures, per_prompt: Sequence[int], text: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Prompt of each video, and its room: what text and images leave, split evenly."""
    prompts, rooms = [], []
    kinds, images = iter(features.kinds), iter(features.images)
    for row, count in enumerate(per_prompt):
        mine = [next(kinds) for _ in range(count)]
        taken = sum(len(next(images)) for kind in mine if kind == "image")
        videos = mine.count("video")
        if videos:
            room = context_room(config, text[row] + taken) // videos
            prompts += [row] * videos
            rooms += [max(1, room)] * videos
    return prompts, rooms


AutoConfig.register("tdc", TDCConfig, exist_ok=True)
for auto_class in (AutoModelForImageTextToText, AutoModelForMultimodalLM):
    auto_class.register(TDCConfig, TDCForConditionalGeneration, exist_ok=True)

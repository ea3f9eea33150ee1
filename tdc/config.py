# SPDX-License-Identifier: Apache-2.0
"""``TDCConfig``: every number of the model, and every point where paper and release differ.

The defaults are the paper's (arXiv 2504.10443). ``RELEASE_BEHAVIOUR`` holds what the authors'
published code does instead; ``tdc convert`` sets those fields, because the published weights were
trained with them. ``docs/paper-vs-release.md`` explains each field.
"""

from __future__ import annotations

import logging
from typing import Any, ClassVar

from transformers import AutoConfig, BertConfig, Dinov2Config, PreTrainedConfig, SiglipVisionConfig

logger = logging.getLogger(__name__)

# Placeholder of a video or an image in ``input_ids``. Negative, as in the LLaVA family, so that no
# language model's vocabulary has to grow for it.
MEDIA_TOKEN_ID = -200

# The released code's choices where it departs from the paper.
RELEASE_BEHAVIOUR: dict[str, Any] = {
    "scene_window": 8,
    "video_size_order": "hw",
    "trim": "window_tail",
    "frame_budget": "release",
    "audio_alignment": "release",
    "audio_padding": "attend",
    "audio_half_precision": True,
    "audio_channel": "first",
}

_CHOICES: dict[str, tuple[Any, ...]] = {
    "query_type": ("pooled", "learned"),
    "context_allocation": ("fixed", "adaptive"),
    "video_size_order": ("wh", "hw"),
    "frame_positions": (None, "sinusoidal", "release"),
    "trim": ("frames", "window_tail"),
    "frame_budget": ("exact", "release"),
    "audio_alignment": ("time", "release"),
    "audio_padding": ("mask", "attend"),
    "audio_channel": ("mix", "first"),
    "padding_side": ("left", "right"),
}


class TDCConfig(PreTrainedConfig):
    """Configuration of :class:`tdc.TDCForConditionalGeneration`.

    Sub-configurations may be given as config objects or dicts. A tower whose configuration is
    ``None`` is not built: such a model starts from tower features (tests, feature stores).

    Raises:
        ValueError: a field has a value outside its choices, or grids that do not divide.
    """

    model_type = "tdc"
    sub_configs: ClassVar = {
        "text_config": AutoConfig,
        "siglip_config": SiglipVisionConfig,
        "dinov2_config": Dinov2Config,
        "qformer_config": BertConfig,
    }

    # --- parts ----------------------------------------------------------------------------------
    text_config: Any = None  # any causal LM (dict with model_type, or config object); Qwen2 if None
    siglip_config: Any = None  # SiglipVisionConfig; None: no SigLIP tower
    dinov2_config: Any = None  # Dinov2Config; None: no DINOv2 tower
    qformer_config: Any = None  # BertConfig: width, layers, heads, vocabulary of the Q-Former
    audio_config: dict | None = None  # fields of tdc.encoder.beats.BEATsConfig; None: no sound

    # --- towers and connector --------------------------------------------------------------------
    siglip_hidden_size: int = 1152  # C_0; taken from siglip_config where that is given
    dinov2_hidden_size: int = 1536  # C_1; likewise
    siglip_image_size: int = 384  # px
    dinov2_image_size: int = 378  # px: 27 x 27 patches of 14
    tower_grid: int = 24  # both towers are resized to tower_grid^2 = 576 tokens
    connector_hidden_size: int = 1024  # V
    connector_depth: int = 3  # SVA layers
    connector_heads: int = 16
    connector_query_groups: int = 1
    connector_grid: int = 12  # SVA queries per side (24 in the image stage)
    frame_grid: int = 12  # tokens per side handed on: 144 per frame (+ one newline per row)
    frame_positions: str | None = None  # "sinusoidal", or "release": the release's cos(sin) table

    # --- segmentation ----------------------------------------------------------------------------
    fps: float = 1.0  # sampled frames per second
    max_frames: int = 224  # per video and question
    num_scenes: int = 24  # S scenes need S - 1 boundaries
    similarity_threshold: float | None = None  # only pairs below it may become boundaries
    scene_window: int | None = None  # frames per static frame within a scene; None: one per scene

    # --- compressor ------------------------------------------------------------------------------
    num_context_tokens: int = 16  # K
    context_allocation: str = "fixed"  # "adaptive": K per dynamic frame on average, by its change
    max_context_tokens_per_frame: int | None = None  # of "adaptive"; None: 2 K
    query_type: str = "pooled"  # "pooled" (average-pooled static frame) or "learned"
    static_frames: bool = True  # False: the first frame of a scene is compressed like the others
    question_in_compressor: bool = True  # the question rides along in the Q-Former
    max_question_tokens: int = 256
    cross_attention_every: int = 2  # Q-Former layers 0, 2, 4, ... look at the frame

    # --- audio -----------------------------------------------------------------------------------
    audio_tokens_per_frame: int = 50
    audio_alignment: str = "time"  # "release": slices of 50 tokens of each 10-s window
    audio_padding: str = "mask"  # "attend": frames without sound attend to zero tokens
    audio_half_precision: bool = False  # round the waveform to fp16 first
    audio_channel: Any = "mix"  # "first": the left channel only

    # --- geometry and budget ---------------------------------------------------------------------
    video_size_order: str = "wh"  # "hw": a video's (height, width) is read as (width, height)
    max_context_length: int = 8192  # tokens of prompt and video together
    answer_reserve: int = 16  # tokens kept free for the answer
    frame_budget: str = "exact"  # "release": its estimate, which ignores newlines and separators
    trim: str = "frames"  # "window_tail": the last tokens of every window are cut

    # --- text ------------------------------------------------------------------------------------
    media_token_id: int = MEDIA_TOKEN_ID
    padding_side: str = "right"  # of batches in forward(); generate() pads left
    tie_word_embeddings: bool = False  # follows text_config

    def __post_init__(self, **kwargs: Any) -> None:
        self.text_config = _text_config(self.text_config)
        self.siglip_config = _as_config(SiglipVisionConfig, self.siglip_config)
        self.dinov2_config = _as_config(Dinov2Config, self.dinov2_config)
        self.qformer_config = _as_config(BertConfig, self.qformer_config or {})
        if self.siglip_config is not None:
            self.siglip_hidden_size = self.siglip_config.hidden_size
        if self.dinov2_config is not None:
            self.dinov2_hidden_size = self.dinov2_config.hidden_size
        self.tie_word_embeddings = bool(getattr(self.text_config, "tie_word_embeddings", False))
        super().__post_init__(**kwargs)
        self._check()

    def _check(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                options = ", ".join(repr(option) for option in allowed)
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected one of {options}")
        for name in ("num_scenes", "num_context_tokens", "max_frames", "frame_grid"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.scene_window is not None and self.scene_window < 1:
            raise ValueError(f"scene_window is {self.scene_window}; expected None or at least 1")
        most = self.max_context_tokens_per_frame
        if most is not None and most < self.num_context_tokens:
            raise ValueError(
                f"max_context_tokens_per_frame is {most}; expected None or at least "
                f"num_context_tokens ({self.num_context_tokens})"
            )
        if self.tower_grid % self.connector_grid:
            raise ValueError(
                f"tower_grid is {self.tower_grid}; expected a multiple of connector_grid "
                f"({self.connector_grid})"
            )

    @property
    def hidden_size(self) -> int:
        """D, the language model's width."""
        return self.text_config.hidden_size

    @property
    def most_context_tokens(self) -> int:
        """The most tokens that one dynamic frame may become."""
        if self.context_allocation == "fixed":
            return self.num_context_tokens
        return self.max_context_tokens_per_frame or 2 * self.num_context_tokens

    @property
    def num_boundaries(self) -> int:
        """Cuts that a video may have: one less than its scenes."""
        return self.num_scenes - 1

    def get_text_config(self, *args: Any, **kwargs: Any) -> PreTrainedConfig:
        return self.text_config


def _text_config(value: Any) -> PreTrainedConfig:
    """Decoder configuration from a config object or a dict that names its ``model_type``."""
    if isinstance(value, PreTrainedConfig):
        return value
    fields = dict(value or {})
    return AutoConfig.for_model(fields.pop("model_type", "qwen2"), **fields)


def _as_config(cls: type[PreTrainedConfig], value: Any) -> PreTrainedConfig | None:
    if value is None or isinstance(value, PreTrainedConfig):
        return value
    return cls(**value)

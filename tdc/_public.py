# SPDX-License-Identifier: Apache-2.0
"""The public names of ``tdc``, and their registration with the Auto classes of transformers."""

from __future__ import annotations

from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
)

from .config import TDCConfig
from .errors import InputError
from .features import VideoFeatures
from .lvcot import answer_long_video
from .model import TDCForConditionalGeneration
from .processor import TDCProcessor

AutoConfig.register("tdc", TDCConfig, exist_ok=True)
for auto_class in (AutoModelForImageTextToText, AutoModelForMultimodalLM):
    auto_class.register(TDCConfig, TDCForConditionalGeneration, exist_ok=True)
AutoProcessor.register(TDCConfig, TDCProcessor, exist_ok=True)

__all__ = [
    "InputError",
    "TDCConfig",
    "TDCForConditionalGeneration",
    "TDCProcessor",
    "VideoFeatures",
    "answer_long_video",
]

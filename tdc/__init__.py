# SPDX-License-Identifier: Apache-2.0
"""TDC: Temporal Dynamic Context for long videos with sound (arXiv 2504.10443).

The public names are imported on first use, so that ``tdc --help`` waits for no torch. The Auto
classes of transformers know the model as soon as both packages are imported.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ._auto_classes import register_with_transformers

_HOME = {
    "InputError": "errors",
    "TDCConfig": "config",
    "TDCForConditionalGeneration": "model",
    "TDCProcessor": "processor.processor",
    "VideoFeatures": "encoder.features",
    "answer_long_video": "lvcot",
    "load": "session",
}
__all__ = list(_HOME)

register_with_transformers()


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

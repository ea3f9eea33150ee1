# SPDX-License-Identifier: Apache-2.0
"""TDC: Temporal Dynamic Context for long videos with sound (arXiv 2504.10443).

Importing the package registers the model with the Auto classes of transformers.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any


def _runs_as_command() -> bool:
    """Whether this process is ``tdc`` or ``python -m tdc``.

    Those import torch and transformers when they load a model, not before: their help appears in
    0.1 s instead of 6 s.
    """
    program = (getattr(sys, "argv", None) or [""])[0]
    if program == "-m":  # not yet replaced by the module's path
        options = sys.orig_argv
        return "-m" in options and options[options.index("-m") + 1 :][:1] == ["tdc"]
    return Path(program).name in ("tdc", "tdc.exe")


if TYPE_CHECKING or not _runs_as_command():
    from ._public import (
        InputError,
        TDCConfig,
        TDCForConditionalGeneration,
        TDCProcessor,
        VideoFeatures,
        answer_long_video,
    )
else:

    def __getattr__(name: str) -> Any:
        if name in __all__:
            from . import _public

            return getattr(_public, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "InputError",
    "TDCConfig",
    "TDCForConditionalGeneration",
    "TDCProcessor",
    "VideoFeatures",
    "answer_long_video",
]

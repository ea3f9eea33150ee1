# SPDX-License-Identifier: Apache-2.0
"""LoRA weights into the model: what stage 3 trained becomes an ordinary TDC folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import check_new_folder, whole_folder
from ..model import TDCForConditionalGeneration
from ..processor.processor import TDCProcessor
from .config import TrainConfig, from_dict
from .stages import get_stage
from .starting_model import starting_model
from .trainer import SETTINGS_FILE


def read_settings(adapter_dir: str | os.PathLike[str]) -> tuple[TrainConfig, int]:
    """Settings and stage that an adapter was trained with.

    Raises:
        InputError: the folder is no adapter of ``tdc train``.
    """
    folder = Path(adapter_dir)
    if not folder.is_dir():
        raise InputError(f"no such folder: {folder}; expected what tdc train 3 wrote")
    if not (folder / "adapter_config.json").is_file():
        raise InputError(f"{folder} holds no LoRA adapter (adapter_config.json); expected one")
    file = folder / SETTINGS_FILE
    try:
        facts = json.loads(file.read_text())
        return from_dict(facts["settings"], str(file)), int(facts["stage"])
    except OSError:
        raise InputError(f"{folder} lacks {SETTINGS_FILE}, which names the model below") from None
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{file} cannot be read: {error}") from None


def merge_adapter(
    adapter_dir: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    changes: dict[str, Any] | None = None,
) -> tuple[TDCForConditionalGeneration, TDCProcessor]:
    """Write the merged model; the folder appears only when it is complete.

    Args:
        adapter_dir: what ``tdc train`` wrote, or one of its checkpoints.
        out_dir: a folder to create.
        changes: settings that differ by now, such as where the model below lies.

    Raises:
        InputError: no adapter there, a model below it that is gone, or a folder that is not empty.
    """
    from peft import PeftModel

    out = Path(out_dir)
    check_new_folder(out)
    settings, stage = read_settings(adapter_dir)
    settings = from_dict({**vars(settings), **(changes or {})}, SETTINGS_FILE)
    model, processor, _ = starting_model(settings, get_stage(stage))
    try:
        merged: Any = PeftModel.from_pretrained(model, str(adapter_dir))
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"the adapter does not fit its model: {reason:.300}") from None
    merged = merged.merge_and_unload().eval()
    with whole_folder(out) as work:
        merged.save_pretrained(work)
        processor.save_pretrained(work)
    return merged, processor

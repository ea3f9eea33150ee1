# SPDX-License-Identifier: Apache-2.0
"""The model that a stage starts from: a TDC folder, parts, or a folder and parts.

Weights come from (later ones win) the folder, the language model's folder, BERT, the towers' and
BEATs' files. What none of them holds is initialised as in the release: the Q-Former's
cross-attention and its queries' feed-forward stay random beside a loaded BERT.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, BertConfig, BertModel, BertTokenizer

from ..checkpoints.convert import vision_config
from ..checkpoints.folder import Checkpoint
from ..checkpoints.load import read_config
from ..checkpoints.release_names import our_names
from ..config import TDCConfig
from ..encoder.beats import BEATs
from ..encoder.towers import VisionTower
from ..errors import InputError, listed
from ..model import TDCForConditionalGeneration
from ..processor.processor import TDCProcessor, new_processor
from .config import TrainConfig
from .stages import Stage, stage_grids

_FAMILIES = {"bert": "bert", "siglip": "siglip_vision_model", "dinov2": "dinov2"}
_GRIDS = ("connector_grid", "frame_grid")
_POSITION = r"video_encoder\.connector\..*\.position"


def starting_model(
    settings: TrainConfig, stage: Stage
) -> tuple[TDCForConditionalGeneration, TDCProcessor, list[str]]:
    """Model in fp32, its processor, and the names of the tensors that are new.

    Raises:
        InputError: parts that are missing or do not fit together.
    """
    _check_parts(settings)
    beats = None if settings.beats is None else BEATs.from_checkpoint(settings.beats)
    config, before = _config(settings, stage, beats)
    state = _weights(settings, config, beats)
    kind: Any = TDCForConditionalGeneration
    model, found = kind.from_pretrained(
        None,
        config=config,
        state_dict=state,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # reported in `found`, all of them at once
        dtype=torch.float32,
    )
    new = _check_weights(found, config, before)
    model.name_or_path = os.path.abspath(settings.model) if settings.model else ""
    processor = _processor(settings, config)
    return model.train(), processor, new


def _check_parts(settings: TrainConfig) -> None:
    if settings.model is None:
        for name in ("language_model", "bert", "siglip", "dinov2"):
            if getattr(settings, name) is None:
                raise InputError(
                    f"the configuration names neither model nor {name}; expected model: a TDC "
                    "folder, or all of language_model, bert, siglip and dinov2"
                )
    elif settings.language_model is not None:
        raise InputError("the configuration names model and language_model; expected one of them")
    for name in _GRIDS:
        if name in settings.model_config:
            raise InputError(
                f"model_config sets {name}, which follows from the stage (576 tokens a picture in "
                "stage 1, 144 a frame later); leave it out"
            )
    for name in ("model", "language_model", "bert"):
        value = getattr(settings, name)
        if value is not None and not Path(value).is_dir():
            raise InputError(f"{name}: no such folder: {value}")


def _config(
    settings: TrainConfig, stage: Stage, beats: BEATs | None
) -> tuple[TDCConfig, TDCConfig | None]:
    """The configuration to train with, and that of the folder it comes from."""
    before = None if settings.model is None else read_config(Path(settings.model))
    fields: dict[str, Any] = {} if before is None else before.to_dict()
    if settings.language_model is not None:
        fields["text_config"] = _read(AutoConfig, settings.language_model, "language_model")
    if settings.bert is not None:
        _check_family("bert", settings.bert, _read(AutoConfig, settings.bert, "bert"))
    if settings.bert is not None and before is None:
        fields["qformer_config"] = _read(BertConfig, settings.bert, "bert")
    for name in ("siglip", "dinov2"):
        if getattr(settings, name) is not None:
            path = getattr(settings, name)
            fields[f"{name}_config"] = vision_config(path)
            _check_family(name, path, fields[f"{name}_config"])
    if beats is not None:
        fields["audio_config"] = dict(vars(beats.config))
    known = TDCConfig().to_dict()
    for name, value in settings.model_config.items():
        if name not in known:
            raise InputError(f"model_config sets {name}, which is no field of TDCConfig")
        fields[name] = value
    if settings.max_context_length is not None:
        fields["max_context_length"] = settings.max_context_length
    for name in ("model_type", "architectures", "transformers_version"):
        fields.pop(name, None)
    tower_grid = fields.get("tower_grid", known["tower_grid"])
    fields |= stage_grids(stage, tower_grid)
    try:
        return TDCConfig(**fields), before
    except ValueError as error:
        raise InputError(f"model_config: {error}") from None


def _check_family(name: str, path: str, config: Any) -> None:
    """transformers loads a folder of another family all the same, with random weights."""
    expected = _FAMILIES[name]
    if config.model_type != expected:
        raise InputError(
            f"{name}: {path} holds a model of type {config.model_type!r}; expected {expected!r}"
        )


def _weights(settings: TrainConfig, config: TDCConfig, beats: BEATs | None) -> dict[str, Tensor]:
    """All tensors that exist, under our names."""
    state: dict[str, Tensor] = {}
    if settings.model is not None:
        state |= _all(Checkpoint(settings.model))
    if settings.language_model is not None:
        state |= _all(Checkpoint(settings.language_model), "language_model.")
    if settings.bert is not None:
        state |= _bert(settings.bert, config)
    for name in ("siglip", "dinov2"):
        path = getattr(settings, name)
        if path is not None:
            prefix = f"video_encoder.{name}."
            for key in [key for key in state if key.startswith(prefix)]:
                del state[key]  # names may differ between versions of a tower
            tower = VisionTower.from_pretrained(path, token_grid=config.tower_grid)
            state |= {prefix + key: x for key, x in tower.state_dict().items()}
    if beats is not None:
        state |= {f"video_encoder.beats.{key}": x for key, x in beats.state_dict().items()}
    return state


def _all(checkpoint: Checkpoint, prefix: str = "") -> dict[str, Tensor]:
    names = {name: name for name in checkpoint.shapes}
    return {prefix + name: tensor for name, tensor in checkpoint.tensors(names)}


def _bert(folder: str, config: TDCConfig) -> Mapping[str, Tensor]:
    """BERT's tensors under the Q-Former's names."""
    bert: Any = _read(BertModel, folder, "bert", add_pooling_layer=False)
    theirs = {f"model.Qformer.bert.{name}": x for name, x in bert.state_dict().items()}
    taken, _ = our_names(config, theirs)
    return {ours: theirs[name] for name, ours in taken.items()}


def _read(kind: Any, path: str, what: str, **options: Any) -> Any:
    try:
        return kind.from_pretrained(path, **options)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{what}: cannot read {path}: {error}") from None


def _check_weights(
    found: Mapping[str, Any], config: TDCConfig, before: TDCConfig | None
) -> list[str]:
    """Names of the tensors that are new on purpose; anything else that does not fit is an error."""
    fresh = [_POSITION]  # windows have positions from stage 2 on
    if before is None:
        fresh += [r"video_encoder\.connector\.", r"compressor\."]
    if config.audio_config and (before is None or not before.audio_config):
        fresh.append(r"compressor\.audio_proj\.")
    if before is not None and before.query_type != config.query_type:
        fresh.append(r"compressor\.query_(proj|tokens)")
    new = sorted(name for name in found["missing_keys"] if re.match("|".join(fresh), name))
    lacking = sorted(set(found["missing_keys"]) - set(new))
    wrong = sorted(f"{k} is {list(s)}, expected {list(e)}" for k, s, e in found["mismatched_keys"])
    for names, what in ((lacking, "are in none of the model's parts"), (wrong, "do not fit")):
        if names:
            raise InputError(f"{len(names)} tensors {what}: {listed(names)}")
    return new


def _processor(settings: TrainConfig, config: TDCConfig) -> TDCProcessor:
    if settings.model is not None:
        processor = _read(TDCProcessor, settings.model, "model")
        processor.config = config
        return processor
    assert settings.language_model is not None and settings.bert is not None
    tokenizer = _read(AutoTokenizer, settings.language_model, "language_model")
    words = _read(BertTokenizer, settings.bert, "bert")
    return new_processor(tokenizer, words, config, f"bert: {settings.bert}")

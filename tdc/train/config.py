# SPDX-License-Identifier: Apache-2.0
"""``TrainConfig``: every setting of a training run, read from a YAML file."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..errors import InputError

STAGES = (1, 2, 3)
PARTS = ("connector", "compressor", "language_model", "lora")
_CHOICES: dict[str, tuple[Any, ...]] = {
    "on_bad_record": ("refuse", "skip"),
    "stage": (None, *STAGES),
    "device": (None, "cpu"),
}


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one run. ``tdc train STAGE --config FILE`` reads them from YAML.

    Raises:
        InputError: a value outside its range, or of another type.
    """

    # --- what it is for --------------------------------------------------------------------------
    stage: int | None = None  # the stage that the file is meant for; the command checks it

    # --- the model it starts from ----------------------------------------------------------------
    model: str | None = None  # a TDC folder (tdc convert, or an earlier stage's output)
    language_model: str | None = None  # folder of a causal LM and its tokenizer
    bert: str | None = None  # folder of bert-base-uncased: Q-Former's start, vocabulary
    siglip: str | None = None  # SigLIP tower: folder or hub name
    dinov2: str | None = None  # DINOv2 tower: folder or hub name
    beats: str | None = None  # Microsoft's BEATs .pt file; gives a model without sound its ears
    # Fields of TDCConfig to set. connector_grid and frame_grid follow from the stage instead.
    model_config: dict[str, Any] = field(default_factory=dict)
    output_dir: str = "tdc-train"  # checkpoints, TensorBoard logs and the finished model

    # --- data ------------------------------------------------------------------------------------
    data: list[str] = field(default_factory=list)  # LLaVA-style JSON lists (or JSON lines)
    data_folder: str = "."  # media paths in the lists are relative to it
    on_bad_record: str = "refuse"  # "skip": leave bad records out and say so
    sound: bool | None = None  # videos' sound; default: in stage 3 only
    max_frames: int | None = None  # frames per video at most; default: the model's (224)
    feature_cache: str | None = None  # folder for tower outputs; see docs/training.md for its size
    # Each turn of a talk sees its medium and itself alone: no earlier answer to copy from.
    separate_turns: bool = False
    workers: int = 2  # processes that decode media; 0: none, decode between the steps

    # --- what trains -----------------------------------------------------------------------------
    # Parts trained instead of the stage's own: connector, compressor, language_model, lora.
    parts: list[str] | None = None
    learning_rate: float = 1e-5  # of every part without its own rate
    connector_learning_rate: float | None = None
    compressor_learning_rate: float | None = None
    lora_rank: int = 128  # inner width of each update
    lora_alpha: int = 256  # updates are scaled by alpha / rank
    lora_dropout: float = 0.05  # of the updates' inputs

    # --- optimisation ----------------------------------------------------------------------------
    epochs: float = 1.0  # times through the data
    max_steps: int = -1  # optimizer steps instead of epochs; -1: epochs count
    batch_size: int = 1  # examples per device and step
    gradient_accumulation: int = 1  # steps whose gradients make one update
    lr_scheduler: str = "cosine"  # any of transformers
    warmup_ratio: float = 0.03  # share of all updates in which the rate rises from 0
    weight_decay: float = 0.0  # of matrices; never of biases and norms
    # AdamW's two decay rates.
    adam_betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    max_grad_norm: float = 1.0  # gradients are scaled down to this norm; 0: never
    max_context_length: int | None = None  # tokens of prompt and media; default: the model's (8192)

    # --- precision and memory --------------------------------------------------------------------
    bf16: bool = True  # autocast; trained weights and AdamW's moments stay fp32
    gradient_checkpointing: bool = True  # compute layers again in backward instead of keeping them
    device: str | None = None  # "cpu"; default: the GPUs if there are any

    # --- the run ---------------------------------------------------------------------------------
    seed: int = 0  # order of the examples, new weights, dropout
    logging_steps: int = 10  # updates between two lines of the log
    save_steps: int = 1000  # updates between two checkpoints
    save_total_limit: int | None = 2  # checkpoints kept; None: all
    resume: bool = True  # go on from the last whole checkpoint in output_dir, if there is one
    tensorboard: bool = True  # logs in output_dir/runs
    deterministic: bool = False  # same bits on a GPU as well, at a price in speed

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise InputError(_wrong(name, getattr(self, name), _either(allowed)))
        for part in self.parts or ():
            if part not in PARTS:
                raise InputError(_wrong("parts", part, f"any of {', '.join(PARTS)}"))
        if self.parts is not None and {"language_model", "lora"} <= set(self.parts):
            raise InputError("parts names language_model and lora; expected one of the two")
        for name in ("batch_size", "gradient_accumulation", "lora_rank", "logging_steps"):
            if getattr(self, name) < 1:
                raise InputError(_wrong(name, getattr(self, name), "1 or more"))
        for name in ("learning_rate", "connector_learning_rate", "compressor_learning_rate"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(_wrong(name, value, "a number above 0"))
        if not 0 <= self.warmup_ratio < 1:
            raise InputError(_wrong("warmup_ratio", self.warmup_ratio, "0 or more and below 1"))
        if len(self.adam_betas) != 2:
            raise InputError(_wrong("adam_betas", self.adam_betas, "two numbers"))


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Settings from a YAML file, with ``key=value`` overrides (values are YAML).

    Raises:
        InputError: no such file, no YAML, an unknown key or a value of another type.
    """
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} holds no settings; expected lines of 'key: value'")
    for text in overrides:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set {text}: expected key=value")
        outer, dot, inner = name.partition(".")
        if dot:  # a field of the model's configuration: --set model_config.num_scenes=8
            values = {**values, outer: {**(values.get(outer) or {}), inner: _yaml(value)}}
        else:
            values = {**values, name: _yaml(value)}
    return from_dict(values, str(path))


def from_dict(values: Mapping[str, Any], source: str = "settings") -> TrainConfig:
    """Checked settings; ``source`` is named in errors.

    Raises:
        InputError: an unknown key (the nearest known one is named) or a value of another type.
    """
    types_ = typing.get_type_hints(TrainConfig)
    known = [f.name for f in fields(TrainConfig)]
    checked = {}
    for name, value in values.items():
        if name not in types_:
            near = difflib.get_close_matches(str(name), known, 1)
            hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"
            raise InputError(f"{source}: unknown key {name}; {hint}")
        checked[name] = _as(types_[name], name, value, source)
    try:
        return TrainConfig(**checked)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None


def _yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _as(kind: Any, name: str, value: Any, source: str) -> Any:
    """``value`` as the field's type. YAML reads 1e-5 as text, and 1 where 1.0 is meant."""
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if value is None:
        if type(None) in options:
            return None
        raise InputError(f"{source}: {_wrong(name, value, _type_name(kind))}")
    for option in options:
        plain = typing.get_origin(option) or option
        if plain is float and not isinstance(value, bool):
            try:
                return float(value)
            except (TypeError, ValueError):
                continue
        if plain is list and isinstance(value, str):
            value = [value]
        if isinstance(value, plain) and not (plain is int and isinstance(value, bool)):
            return [float(v) for v in value] if option == list[float] else value
    raise InputError(f"{source}: {_wrong(name, value, _type_name(kind))}")


def _type_name(kind: Any) -> str:
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    words = []
    for option in options:
        plain = typing.get_origin(option) or option
        words.append(names.get(plain, {list: "a list", dict: "a mapping"}.get(plain, "null")))
    return " or ".join(words)


def _wrong(name: str, value: Any, expected: str) -> str:
    return f"{name} is {value!r}; expected {expected}"


def _either(allowed: Sequence[Any]) -> str:
    return "one of " + ", ".join("null" if option is None else repr(option) for option in allowed)

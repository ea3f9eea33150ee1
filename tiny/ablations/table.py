# SPDX-License-Identifier: Apache-2.0
"""The table of ablations: what each setting changes, everything else being equal.

Changes are fields of ``TDCConfig``, ``qformer_config.hidden_size`` for a field inside another. A
setting that changes nothing is the baseline, which is trained once and stands in every table.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tdc.config import TDCConfig
from tdc.errors import InputError

from ..model import tiny_config

BASELINE = ("baseline", "default")  # ablation and setting under which it is kept
LONGEST = 24  # frames of a training clip
_NOT_FIELDS = ("model_type", "architectures", "transformers_version")


@dataclass(frozen=True)
class Setting:
    """One row of a table.

    Attributes:
        name: label in the table, and name of a folder.
        changes: fields of TDCConfig, set from the start of training.
        sound: False removes sound, in training and evaluation.
        segments: LVCoT's N; nothing is trained, the finished model is used.
        trained_as: setting of the same ablation whose trained model is reused, where training
            cannot differ.
    """

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    sound: bool = True
    segments: int | None = None
    trained_as: str | None = None

    def is_baseline(self) -> bool:
        if self.segments is not None or not self.sound or self.lacking() is not None:
            return False
        own = _unchanged()
        return all(own[name] == value for name, value in self.changes.items())

    def lacking(self) -> str | None:
        """Reason why this version cannot run it; None if it can."""
        unknown = [name for name in self.changes if name not in _unchanged()]
        return f"TDCConfig has no field {unknown[0]}" if unknown else None


@dataclass(frozen=True)
class Ablation:
    """``term``: the paper's name and section; ``what``: the fields that change."""

    name: str
    term: str
    what: str
    settings: tuple[Setting, ...]

    @property
    def trains(self) -> bool:
        return self.settings[0].segments is None


def _each(fields: Sequence[str], values: Sequence[Any]) -> tuple[Setting, ...]:
    """A setting per value, given to all of the fields."""
    return tuple(Setting(str(value), dict.fromkeys(fields, value)) for value in values)


def _scenes(number: int, lowest: bool = False) -> Setting:
    changes = {"num_scenes": number, **({"similarity_threshold": None} if lowest else {})}
    name = "{}-lowest" if lowest else "{}"
    # No training clip has more than LONGEST frames.
    same = name.format(LONGEST) if number > LONGEST else None
    return Setting(name.format(number), changes, trained_as=same)


def _width(width: int) -> Setting:
    sizes = {"hidden_size": width, "intermediate_size": 3 * width}
    return Setting(str(width), {f"qformer_config.{name}": size for name, size in sizes.items()})


ABLATIONS: dict[str, Ablation] = {
    ablation.name: ablation
    for ablation in (
        Ablation(
            "tokens",
            "K, compressed tokens per dynamic frame (3.2)",
            "num_context_tokens",
            _each(["num_context_tokens"], [1, 4, 8, 16, 32]),
        ),
        Ablation(
            "scenes",
            "S, segments of a video (3.1)",
            "num_scenes; -lowest: without the similarity threshold",
            (
                *(_scenes(number) for number in (1, 4, 24, 48)),
                *(_scenes(number, lowest=True) for number in (4, 24, 48)),
            ),
        ),
        Ablation(
            "queries",
            "queries from the average-pooled static frame (3.2)",
            "query_type",
            _each(["query_type"], ["pooled", "learned"]),
        ),
        Ablation(
            "static",
            "static frame of a scene (3.2)",
            "static_frames",
            (Setting("on", {"static_frames": True}), Setting("off", {"static_frames": False})),
        ),
        Ablation(
            "question",
            "instruction text in the compressor (3.2)",
            "question_in_compressor",
            (
                Setting("on", {"question_in_compressor": True}),
                Setting("off", {"question_in_compressor": False}),
            ),
        ),
        Ablation(
            "audio",
            "audio tokens (3.2)",
            "sound, in training and when asked",
            (Setting("on"), Setting("off", sound=False)),
        ),
        Ablation(
            "depth",
            "layers of the Q-Former (3.2)",
            "qformer_config.num_hidden_layers",
            _each(["qformer_config.num_hidden_layers"], [1, 2, 3, 4, 5, 6]),
        ),
        Ablation(
            "width",
            "width of the Q-Former (3.2)",
            "qformer_config.hidden_size, and intermediate_size with it (3 times as wide)",
            tuple(_width(width) for width in (32, 64, 128)),
        ),
        Ablation(
            "allocation",
            "the same number of tokens for each dynamic frame (3.2)",
            "context_allocation",
            _each(["context_allocation"], ["fixed", "adaptive"]),
        ),
        Ablation(
            "lvcot",
            "LVCoT, N segments (3.3)",
            "num_segments of answer_long_video; nothing is trained",
            tuple(Setting(str(n), segments=n) for n in (1, 2, 3, 5, 10)),
        ),
    )
}


def chosen(names: Sequence[str] | None) -> list[Ablation]:
    """The named ablations in the table's order; None: all of them.

    Raises:
        InputError: no such ablation.
    """
    for name in names or ():
        if name not in ABLATIONS:
            near = difflib.get_close_matches(name, ABLATIONS, 1)
            hint = f"did you mean {near[0]}?" if near else f"expected {', '.join(ABLATIONS)}"
            raise InputError(f"no ablation is called {name!r}; {hint}")
    return [a for a in ABLATIONS.values() if names is None or a.name in names]


def configured(config: TDCConfig, changes: Mapping[str, Any]) -> TDCConfig:
    """A copy of a configuration with some fields changed."""
    fields = {k: v for k, v in config.to_dict().items() if k not in _NOT_FIELDS}
    for name, value in changes.items():
        outer, dot, inner = name.partition(".")
        fields[outer] = {**fields[outer], inner: value} if dot else value
    return TDCConfig(**fields)


@functools.cache
def _unchanged() -> Mapping[str, Any]:
    return flat(tiny_config())


def flat(config: TDCConfig) -> dict[str, Any]:
    """All fields, under the names that ``Setting.changes`` uses."""
    found: dict[str, Any] = {}
    for name, value in config.to_dict().items():
        if isinstance(value, dict):
            found |= {f"{name}.{inner}": v for inner, v in value.items()}
        else:
            found[name] = value
    return found

# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: RUF001 (typographic signs in the words)
"""All targets, of the ops and of the model, and what was measured of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from . import results
from .results import Row

NOTHING = "not measured"


class Found:
    """What results files hold."""

    def __init__(
        self, rows: Iterable[Row] = (), records: Mapping[str, list[dict[str, Any]]] | None = None
    ) -> None:
        self.groups, self.records = results.groups(rows), records or {}


@dataclass(frozen=True)
class Target:
    """Forward, ours must be ``ratio`` times as fast as ``against``, or reach this share."""

    what: str  # an op, or what records begin with
    case: str  # of the op; the part of the record
    against: str  # a provider, "compiled", "best" of all that are not ours, or "ceiling"
    ratio: float
    words: str
    record: bool = False
    dtypes: tuple[str, ...] = results.DTYPES

    @property
    def name(self) -> str:
        return self.what if self.record else f"`{self.what}`"

    def value(self, found: Found, dtype: str) -> float | None:
        if self.record:
            return self._recorded(found, dtype)
        group = found.groups.get((self.what, self.case, dtype, "forward"), {})
        row = results.ours(group)
        if row is None:
            return None
        if self.against == "ceiling":
            return float(row["share"])
        other = results.peer(group, self.against)
        return results.milliseconds(other) / results.milliseconds(row) if other else None

    def _recorded(self, found: Found, dtype: str) -> float | None:
        ratios = (
            row.get("ratios", {}).get(self.against)
            for name, rows in found.records.items()
            for row in (rows if name.startswith(self.what) else ())
            if row["part"] == self.case and row["dtype"] == dtype
        )
        return next((ratio for ratio in ratios if ratio is not None), None)

    def cell(self, found: Found, dtype: str, reached: str = "") -> str:
        """The number, and whether it was ``reached`` (in this word) or missed."""
        if dtype not in self.dtypes:
            return "–"
        value = self.value(found, dtype)
        if value is None:
            return NOTHING
        number = f"{value:.0%}" if self.against == "ceiling" else f"{value:.3g}×"
        word = reached if value >= self.ratio else "missed"
        return f"{number} ({word})" if word else number


def _small(op: str, dtypes: tuple[str, ...] = results.DTYPES) -> Target:
    return Target(op, "small", "eager", 1, "8 frames: not slower than eager", dtypes=dtypes)


# Of docs/benchmarks.md.
PUBLISHED = (
    Target("frame_similarity", "paper", "release", 10, "≥ 10× `F.cosine_similarity`"),
    Target("frame_similarity", "paper", "ceiling", 0.8, "≥ 80 % of the read bandwidth"),
    Target("segment_scenes", "paper", "release", 10, "≥ 10× windowed loop and sort"),
    Target("anchor_queries", "paper", "release", 2, "≥ 2× pooling and linear per frame"),
    Target("pack_context", "paper", "release", 3, "≥ 3× chain of cat and expand"),
    Target("cross_attention", "paper", "best", 1.4, "≥ 1.4× the best of PyTorch (fp32)"),
    Target("cross_attention", "blip2", "best", 1, "BLIP-2's shape: not slower than the best"),
    _small("frame_similarity"),
    _small("scene_boundaries", ("float32",)),
    *map(_small, ("segment_scenes", "anchor_queries", "pack_context", "cross_attention")),
)

_WHOLE, _FIRST = "segmentation and compression", "first token, from decoded frames"
_AS_FAST = "first token from decoded frames ≥ 1.5× the authors' way"
# Of the summary of a run on a GPU.
ON_A_GPU = (
    Target("compressor", _WHOLE, "release", 30, "compressor ≥ 30× the authors' loop", True),
    Target(
        "compressor",
        _WHOLE,
        "batched and compiled",
        2,
        "compressor ≥ 2× compiled batched code",
        True,
    ),
    Target("pipeline", _FIRST, "release", 1.5, _AS_FAST, True),
    Target("frame_similarity", "paper", "ceiling", 0.9, "≥ 90 % of the measured read bandwidth"),
    Target("frame_similarity", "paper", "eager", 8, "≥ 8× eager"),
    Target("frame_similarity", "paper", "compiled", 1.5, "≥ 1.5× torch.compile"),
    Target("anchor_queries", "paper", "release", 5, "≥ 5× the authors' way"),
    Target("pack_context", "paper", "release", 10, "≥ 10× the authors' way"),
    Target("cross_attention", "paper", "best", 1.5, "≥ 1.5× the best peer (aim: 2.5×)"),
)

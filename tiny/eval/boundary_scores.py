# SPDX-License-Identifier: Apache-2.0
"""Precision, recall and F1 of found cuts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class BoundaryScores:
    """Counts of cuts, of one clip or summed over many; a cut is right on its exact frame only.

    Precision is 1 if nothing was found, recall is 1 if there was nothing to find.
    """

    correct: int = 0
    found: int = 0
    true: int = 0

    @property
    def precision(self) -> float:
        return self.correct / self.found if self.found else 1.0

    @property
    def recall(self) -> float:
        return self.correct / self.true if self.true else 1.0

    @property
    def f1(self) -> float:
        """Harmonic mean of both: 2 correct / (found + true); 1 without any cuts."""
        total = self.found + self.true
        return 2 * self.correct / total if total else 1.0

    def __add__(self, other: BoundaryScores) -> BoundaryScores:
        return BoundaryScores(
            self.correct + other.correct, self.found + other.found, self.true + other.true
        )


def boundary_scores(found: Iterable[int], truth: Iterable[int]) -> BoundaryScores:
    """Scores of found cuts (first frames of new scenes) against the true ones (`Clip.cuts`)."""
    got, real = set(found), set(truth)
    return BoundaryScores(len(got & real), len(got), len(real))

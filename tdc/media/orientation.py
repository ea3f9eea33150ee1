# SPDX-License-Identifier: Apache-2.0
"""How a stored picture lies, and turning it upright."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from . import pyav as av


@dataclass(frozen=True)
class Turn:
    """One of the eight ways a stored picture can lie: transpose first, then mirror."""

    transpose: bool = False
    mirror_x: bool = False
    mirror_y: bool = False

    def apply(self, picture: np.ndarray) -> np.ndarray:
        if self.transpose:
            picture = picture.transpose(1, 0, 2)
        return picture[:: -1 if self.mirror_y else 1, :: -1 if self.mirror_x else 1]


def orientation(frame: Any) -> Turn:
    """What the display matrix [a b u; c d v; x y w] asks for: x' = a·x + c·y, y' = b·x + d·y."""
    matrix = av.display_matrix(frame)
    if matrix is None:
        return Turn()
    a, b, c, d = matrix
    if abs(b) > abs(a):
        return Turn(True, mirror_x=c < 0, mirror_y=b < 0)
    return Turn(False, mirror_x=a < 0, mirror_y=d < 0)

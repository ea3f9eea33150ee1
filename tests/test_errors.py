# SPDX-License-Identifier: Apache-2.0
"""Lists in messages."""

from __future__ import annotations

import pytest

from tdc.errors import listed


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ("a", "a"),
        ("abc", "a, b, c"),
        ("abcd", "a, b, c, and 1 more"),
        ("abcdefgh", "a, b, c, and 5 more"),
    ],
)
def test_long_lists_name_the_first_and_count_the_others(names, text):
    assert listed(list(names), 3) == text
    assert listed(list(names), 3, "; ") == text.replace(",", ";")

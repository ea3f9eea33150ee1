# SPDX-License-Identifier: Apache-2.0
"""Broken files of every container give a result or an `InputError`: no crash, hang or other error.

A longer campaign: see `tests/helpers/broken_media.py`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from broken_media import SEEDS, Reader, try_files, write_seeds


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    found = write_seeds(tmp_path_factory.mktemp("whole"))
    assert len(found) > 0.7 * len(SEEDS)  # the rest are encoders that this FFmpeg lacks
    return found


def test_whole_files_are_read(seeds: dict[str, bytes], tmp_path: Path) -> None:
    reader = Reader()
    for name in ("h264.mp4", "vp8.mkv"):
        path = tmp_path / name
        path.write_bytes(seeds[name])
        assert reader.read(path) == ""
    reader.close()


def test_a_few_broken_files(seeds: dict[str, bytes], tmp_path: Path) -> None:
    assert list(try_files(seeds, range(20_000, 20_012), tmp_path)) == []


@pytest.mark.slow
def test_broken_files(seeds: dict[str, bytes], tmp_path: Path) -> None:
    assert list(try_files(seeds, range(4_000, 7_300), tmp_path)) == []

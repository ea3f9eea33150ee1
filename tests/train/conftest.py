# SPDX-License-Identifier: Apache-2.0
"""A tiny model folder, media files and lists of records."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "model"))  # tiny.py
sys.path.append(str(Path(__file__).parents[1] / "media"))  # clips.py

import train_samples


@pytest.fixture(scope="session")
def media_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures, two clips (one with sound) and a list for each stage. Never change it."""
    return train_samples.write_media(tmp_path_factory.mktemp("media"))


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny TDC folder. Never change it."""
    return train_samples.write_model(tmp_path_factory.mktemp("model") / "tdc")

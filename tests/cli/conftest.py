# SPDX-License-Identifier: Apache-2.0
"""Running ``tdc`` inside the test process, a tiny model folder for it, and odd clips."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from clips import tone, write_clip
from model_folders import write_model

from tdc.cli.main import main


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    def refused(self) -> str:
        """The one line of a refusal: exit code 2, nothing on stdout, no traceback."""
        assert (self.code, self.out) == (2, ""), self
        lines = [line for line in self.err.splitlines() if not line.startswith("note: ")]
        assert len(lines) == 1 and lines[0].startswith("tdc: "), self.err
        return lines[0]


@pytest.fixture
def tdc(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """``tdc("segment", path)`` runs the command and gives exit code, stdout and stderr."""

    def run(*arguments: object) -> Result:
        capsys.readouterr()
        try:
            code = main([str(a) for a in arguments])
        except SystemExit as leaving:  # argparse
            code = leaving.code if isinstance(leaving.code, int) else 0
        out, err = capsys.readouterr()
        return Result(code, out, err)

    return run


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder as ``save_pretrained`` writes it. Never change it: ask for ``own_model``."""
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def own_model(model_dir: Path, tmp_path: Path) -> Path:
    """A copy of the model folder that a test may damage."""
    return Path(shutil.copytree(model_dir, tmp_path / "model"))


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seconds at 10 frames per second, with sound."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    return write_clip(path, frames=40, fps=10, audio=tone(4))


@pytest.fixture(autouse=True)
def _nothing_left_behind(tmp_path: Path) -> Iterator[None]:
    """No command, failed or not, leaves a temporary file."""
    yield
    left = [p.name for p in tmp_path.rglob(".*") if p.is_file()]
    assert not left, f"left behind: {left}"

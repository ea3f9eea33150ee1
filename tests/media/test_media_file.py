# SPDX-License-Identifier: Apache-2.0
"""One scan of a file's packets for everything that is asked of it, as long as it stays the same."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from clips import numbers_of, tone, truncate, write_clip
from file_passes import FilePasses, watch_files

from tdc.errors import InputError
from tdc.media.audio import read_audio
from tdc.media.media_file import MediaFile
from tdc.media.video import probe, read_video

VIDEO, SOUND = ("a.mp4", "video"), ("a.mp4", "audio")


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "a.mp4", frames=90, audio=tone(3))


@pytest.fixture
def passes(clip: Path, monkeypatch: pytest.MonkeyPatch) -> FilePasses:
    return watch_files(monkeypatch)


def test_a_media_file_reads_as_its_path_does(clip: Path) -> None:
    file = MediaFile(clip)
    for source in (file, str(clip), clip):
        assert os.fspath(MediaFile.of(source)) == str(MediaFile.of(source)) == str(clip)
    assert MediaFile.of(file) is file
    assert probe(file) == probe(clip) and file.duration == probe(clip).duration
    assert numbers_of(read_video(file).frames) == numbers_of(read_video(clip).frames) == [0, 30, 60]
    np.testing.assert_array_equal(read_audio(file), read_audio(clip))


def test_all_questions_share_one_scan(clip: Path, passes: FilePasses) -> None:
    file = MediaFile(clip)
    assert not passes.opened  # nothing is read before it is needed
    assert file.info.has_audio and file.scan().duration == pytest.approx(3)
    assert probe(file).fps == pytest.approx(30)
    read_video(file)
    read_audio(file)
    assert passes.read == [VIDEO, VIDEO, SOUND] and len(passes.opened) == 3


def test_paths_are_scanned_at_every_call(clip: Path, passes: FilePasses) -> None:
    probe(clip)
    read_video(clip)
    assert passes.read == [VIDEO] * 3


def test_a_copy_in_a_worker_keeps_the_scan(clip: Path, passes: FilePasses) -> None:
    copy = pickle.loads(pickle.dumps(MediaFile(clip).scan()))
    assert copy.info.width == 96 and numbers_of(read_video(copy).frames) == [0, 30, 60]
    assert passes.read == [VIDEO, VIDEO]


def test_a_file_that_has_changed_is_scanned_again(clip: Path, passes: FilePasses) -> None:
    file = MediaFile(clip).scan()
    other = write_clip(clip.with_name("b.mp4"), frames=30, fps=10, size=(64, 48))
    passes.read.clear()
    os.replace(other, clip)
    assert numbers_of(read_video(file).frames) == [0, 10, 20]
    assert (file.info.width, file.info.has_audio) == (64, False)
    assert passes.read == [VIDEO, VIDEO]
    file.scan()
    assert len(passes.read) == 2


def test_a_file_that_grows_is_read_as_far_as_it_reaches(tmp_path: Path) -> None:
    whole = write_clip(tmp_path / "w.mkv", frames=300)
    file = MediaFile(truncate(whole, tmp_path / "g.mkv", 0.5))
    assert 3 < file.duration < 7
    shutil.copyfile(whole, file.path)
    assert file.duration == pytest.approx(10) and len(read_video(file).frames) == 10


def test_a_bad_file_is_refused_every_time(tmp_path: Path) -> None:
    file = MediaFile(tmp_path / "a.mp4")
    for _ in range(2):
        with pytest.raises(InputError, match="no such file"):
            file.scan()
    write_clip(file.path, video=False, audio=tone(0.5))
    with pytest.raises(InputError, match="it holds sound only"):
        _ = file.duration
    assert len(read_audio(file)) > 7000  # sound needs no picture

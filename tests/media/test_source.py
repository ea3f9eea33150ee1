# SPDX-License-Identifier: Apache-2.0
"""Whatever names or holds a file is that file; nothing stays on disk and nothing is closed."""

from __future__ import annotations

import base64
import io
import os
import tempfile
from pathlib import Path
from urllib.parse import quote

import pytest
from clips import numbers_of, tone, write_clip

from tdc.errors import InputError
from tdc.media import source
from tdc.media.audio import read_audio
from tdc.media.media_file import MediaFile
from tdc.media.source import Base64, SpooledFile, local, opened, pieces_of
from tdc.media.video import read_video


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """Its index stands at its end; a name that URLs escape."""
    folder = tmp_path_factory.mktemp("clip")
    return write_clip(folder / "a b#é%41.mp4", frames=8, fps=4, audio=tone(2))


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """Where temporary files go: empty afterwards."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert not list(folder.iterdir())


def urls(data: bytes) -> dict[str, object]:
    text = base64.b64encode(data).decode()
    return {
        "data URL": f"data:video/mp4;base64,{text}",
        "no type": f"data:;base64,{text}",
        "capitals": f"DATA:video/mp4;charset=x;BASE64,{text}",
        "lines": "data:video/mp4;base64," + base64.encodebytes(data).decode(),
        "no padding": "data:video/mp4;base64," + text.rstrip("="),
        "for URLs": "data:video/mp4;base64," + base64.urlsafe_b64encode(data).decode(),
        "escaped base64": "data:video/mp4;base64," + quote(text, safe=""),
        "escaped": "data:video/mp4," + quote(data, safe=""),
        "base64": Base64(text),
        "plain base64": text,
        "bytes": data,
        "bytearray": bytearray(data),
        "memoryview": memoryview(data + data)[: len(data)],
        "file object": io.BytesIO(data),
        "bytes of a data set": {"bytes": data, "path": "a.mp4"},
    }


@pytest.mark.parametrize("kind", urls(b""))
@pytest.mark.parametrize("step", [1000, 2**20])
def test_bytes_in_every_form(clip, kind, step, monkeypatch):
    monkeypatch.setattr(source, "_STEP", step)
    value = urls(clip.read_bytes())[kind]
    with opened(value, "video") as file:
        assert Path(file).read_bytes() == clip.read_bytes()
        assert numbers_of(read_video(file, fps=4).frames) == list(range(8))
        assert len(read_audio(file)) > 30_000
        assert isinstance(file, MediaFile) and str(file) == "the given video"


def test_paths_and_file_urls(clip):
    uri = clip.as_uri()
    assert "%20" in uri and "%23" in uri and "%25" in uri
    for named in (
        str(clip),
        clip,
        uri,
        uri.replace("file://", "file://localhost"),
        MediaFile(clip),
    ):
        assert local(named, "video").path == str(clip)
    assert local(uri.replace("file://", "FILE:"), "video").path == str(clip)
    assert local({"path": str(clip), "bytes": None}, "video").path == str(clip)
    for name in ("a:b.mp4", "c" * 99, "/" + "folder/" * 20 + "name", "d" * 120 + ".mp4"):
        assert local(name, "video").path == name
    array = object()
    assert local(array, "video") is array


def test_a_file_object_stays_open_where_it_was(clip):
    with clip.open("rb") as file:
        file.seek(11)
        with opened(file, "video") as found:
            assert os.path.getsize(found) == clip.stat().st_size
        assert not file.closed and file.tell() == 11
    read, write = os.pipe()
    os.write(write, b"12345")
    os.close(write)
    with os.fdopen(read, "rb") as pipe, opened(pipe, "video") as found:
        assert Path(found).read_bytes() == b"12345"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("http://example.org/v.mp4", "this library fetches nothing by http; download it"),
        ("HTTPS://example.org/v.mp4", "this library fetches nothing by https"),
        ("s3://bucket/v.mp4", "this library fetches nothing by s3"),
        ("rtsp://camera", "this library fetches nothing by rtsp"),
        ("file://elsewhere/v.mp4", "expected file:///path, a file of this machine"),
        ("file://[", "expected file:///path"),
        ("data:video/mp4;base64,AAAA@", "is no base64"),
        ("data:video/mp4;base64,AAAAA", "is no base64"),
        ("data:video/mp4", "expected data:video/...;base64,"),
        (Base64("é"), "is no base64"),
        ("A-b." * 2000, "is no path; base64 goes into a URL"),
        (io.StringIO("text"), "comes as text; open the file in binary mode"),
        ({"bytes": None}, "expected a dict with bytes or path"),
    ],
)
def test_what_is_no_local_file_is_one_line(value, message):
    with pytest.raises(InputError) as caught:
        local(value, "video")
    assert message in str(caught.value) and len(str(caught.value)) < 200


def test_a_closed_file_is_named():
    file = io.BytesIO(b"1")
    file.close()
    with pytest.raises(InputError, match="the given video cannot be read: I/O operation on"):
        local(file, "video")


def test_errors_name_the_label_and_leave_nothing():
    with pytest.raises(InputError) as caught, opened(b"no film", "video") as file:
        read_video(file)
    assert str(caught.value) == "not a video: the given video is a text"
    with opened(b"no film", "video") as file:
        pass
    assert file._file.closed
    with pytest.raises(InputError, match="the given video is empty"):
        local(b"", "video").scan()


def test_the_size_is_bounded(monkeypatch):
    class Endless:
        def read(self, size):
            return b"0" * size

    with pytest.raises(InputError, match="the input is longer than 5,000,000 bytes"):
        SpooledFile("the input", pieces_of(Endless(), "the input"), 5_000_000)


def test_without_proc_the_file_has_a_name_and_loses_it(temporary, monkeypatch):
    monkeypatch.setattr(source.os.path, "isdir", lambda path: False)
    file = local(b"123", "video")
    (only,) = temporary.iterdir()
    assert file.path == str(only) and only.read_bytes() == b"123"
    file.close()
    assert not only.exists()
    with pytest.raises(InputError, match="is no base64") as caught:
        local(Base64("?"), "video")
    assert caught.value.__traceback__ and not list(temporary.iterdir())
    local(b"123", "video")  # nobody holds it

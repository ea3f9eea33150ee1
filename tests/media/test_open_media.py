# SPDX-License-Identifier: Apache-2.0
"""A path opens that file and nothing else."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import av
import pytest
from clips import numbered, numbers_of, tone, write_clip
from PIL import Image

from tdc.errors import InputError
from tdc.media.audio import has_audio, read_audio
from tdc.media.video import probe, read_image, read_video

PLAYLISTS = {
    "a.mp4": "ffconcat version 1.0\nfile {name}\n",
    "b.ffconcat": "ffconcat version 1.0\nfile {name}\n",
    "c.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{path}\n#EXT-X-ENDLIST\n",
    "d.mp4": "\ufeff#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{path}\n#EXT-X-ENDLIST\n",
    "e.mpd": '<?xml version="1.0"?>\n<MPD><BaseURL>{path}</BaseURL></MPD>\n',
    "f.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nt=0 0\nm=video 5000 RTP/AVP 96\n",
    "g.pls": "[playlist]\nFile1={path}\nNumberOfEntries=1\n",
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_a_playlist_is_refused(tmp_path: Path, name: str) -> None:
    other = write_clip(tmp_path / "other.ts", frames=30, audio=tone(1))
    path = tmp_path / name
    path.write_text(PLAYLISTS[name].format(name=other.name, path=other), encoding="utf-8")
    for read, wanted in (
        (read_video, "a video"),
        (probe, "a video"),
        (read_audio, "an audio or video file"),
        (has_audio, "an audio or video file"),
    ):
        with pytest.raises(InputError) as caught:
            read(path)  # type: ignore[operator]
        message = f"not {wanted}: {path} is a playlist; give the file that it names"
        assert str(caught.value) == message


@pytest.mark.parametrize("comment", ["# a comment\n", "#\n\n"])
def test_no_playlist_behind_a_comment(tmp_path: Path, comment: str) -> None:
    write_clip(tmp_path / "other.mp4", frames=30)
    path = tmp_path / "x.mp4"
    path.write_text(f"{comment}ffconcat version 1.0\nfile other.mp4\n")
    with pytest.raises(InputError, match="is a text"):
        read_video(path)


def test_raw_bytes_are_no_video(tmp_path: Path) -> None:
    """FFmpeg would guess a format from names such as these."""
    for name in ("a.yuv", "a.sw", "a.idf"):
        (tmp_path / name).write_bytes(bytes(range(256)) * 300)
        for read in (read_video, read_audio):
            with pytest.raises(InputError, match="no known media format"):
                read(tmp_path / name)  # type: ignore[operator]


def test_a_pipe_or_device_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "f.mp4")
    (tmp_path / "link.mp4").symlink_to(tmp_path / "f.mp4")
    for path in (tmp_path / "f.mp4", tmp_path / "link.mp4", Path("/dev/zero")):
        for read in (read_video, probe, read_audio, has_audio, read_image):
            with pytest.raises(InputError) as caught:
                read(path)  # type: ignore[operator]
            assert str(caught.value) == f"{path} is a pipe or a device, expected a file"


def test_a_link_to_a_video_is_one(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", frames=30)
    (tmp_path / "link").symlink_to(path)
    assert numbers_of(read_video(tmp_path / "link").frames) == [0]


@pytest.mark.parametrize("name", ["i.jpg", "i.webp", "i.bmp", "i.tiff"])
def test_images_are_called_so(tmp_path: Path, name: str) -> None:
    Image.fromarray(numbered(5, (96, 64))).save(tmp_path / name)
    with pytest.raises(InputError, match=r"not a video: .* is an image \("):
        read_video(tmp_path / name)


def external(path: Path, other: Path) -> Path:
    """Make a MOV's tracks refer to another file, as editing programs write it ("alis")."""
    target = str(other).encode()
    target += b"\0" * (len(target) % 2)
    record = bytes(130) + struct.pack(">hh", 1, 1) + bytes(16)
    record += struct.pack(">hh", 2, len(target)) + target + struct.pack(">hh", -1, 0)
    entry = struct.pack(">I4sI", 12 + len(record), b"alis", 0) + record
    data = path.read_bytes()
    old = struct.pack(">I4sI", 12, b"url ", 1)
    assert data.count(old) == 1
    at, grown = data.index(old), len(entry) - len(old)
    data = data[:at] + entry + data[at + len(old) :]
    for box in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"):
        size = data.index(box) - 4
        number = struct.unpack(">I", data[size : size + 4])[0] + grown
        data = data[:size] + struct.pack(">I", number) + data[size + 4 :]
    path.write_bytes(data)
    return path


def test_a_movie_opens_no_other_file(tmp_path: Path) -> None:
    other = write_clip(tmp_path / "other.mov", frames=30)
    path = external(write_clip(tmp_path / "a.mov", frames=30), other)
    with pytest.raises(InputError, match="no frames"):
        read_video(path)


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mpg", "mpeg2video"),
        ("a.vob", "mpeg2video"),
        ("a.m2ts", "libx264"),
        ("a.wmv", "wmv2"),
        ("a.nut", "ffv1"),
        ("a.mxf", "mpeg2video"),
        ("a.3gp", "mpeg4"),
        ("a.mkv", "mjpeg"),
        ("a.ivf", "libvpx"),
    ],
)
def test_containers_people_have(tmp_path: Path, name: str, codec: str) -> None:
    path = tmp_path / name
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=25)
        stream.width, stream.height = 96, 64
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        if codec != "libvpx":
            stream.codec_context.qmin = stream.codec_context.qmax = 2
        for number in range(50):
            picture = numbered(number, (96, 64))
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
    assert numbers_of(read_video(path, fps=5, end=1.5).frames) == [0, 5, 10, 15, 20, 25, 30, 35]


@pytest.mark.parametrize("name", ["a.flac", "a.mp3", "a.aac", "a.ogg", "a.aiff", "a.au", "a.caf"])
def test_sound_files_people_have(tmp_path: Path, name: str) -> None:
    codec = {"aiff": "pcm_s16be", "au": "pcm_s16be", "caf": "pcm_s16le", "ogg": "libopus"}
    path, wave = tmp_path / name, tone(1, rate=48000)
    with av.open(str(path), "w") as out:
        end = name.rpartition(".")[2]
        stream = out.add_stream(codec.get(end, end), rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
        frame.sample_rate = 48000
        out.mux(stream.encode(frame))
        out.mux(stream.encode())
    assert len(read_audio(path)) == pytest.approx(16000, abs=1600)


@pytest.mark.parametrize("read", [read_video, read_audio, read_image, probe])
def test_addresses_are_refused(read):
    with pytest.raises(InputError, match=r"this library fetches nothing by https; download it"):
        read("https://example.org/v.mp4")

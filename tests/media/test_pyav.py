# SPDX-License-Identifier: Apache-2.0
"""Frames as PyAV gives them: side data, pixels that cannot be converted."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import pytest
from clips import number_of, numbered, write_clip
from PIL import Image

from tdc.errors import InputError
from tdc.media import pyav
from tdc.media.video import probe, read_video


def test_pictures_of_a_camera_with_exif(tmp_path: Path) -> None:
    """A kind of side data that PyAV 17 and 18 do not know; the angle is in it."""
    path, picture = tmp_path / "camera.avi", io.BytesIO()
    image = Image.fromarray(np.rot90(numbered(5, (96, 64))))
    exif = image.getexif()
    exif[0x0112] = 6  # a quarter turn clockwise makes it upright
    image.save(picture, "JPEG", exif=exif, quality=95)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mjpeg", rate=1)
        stream.width, stream.height, stream.pix_fmt = 64, 96, "yuvj420p"
        out.start_encoding()
        for time in range(3):
            packet = av.Packet(picture.getvalue())
            packet.stream, packet.time_base = stream, stream.codec_context.time_base
            packet.pts = packet.dts = time
            packet.is_keyframe = True
            out.mux(packet)
    info = probe(path)
    assert (info.width, info.height, info.rotation) == (96, 64, 270)
    assert [number_of(frame) for frame in read_video(path).frames] == [5, 5, 5]


def test_pictures_that_cannot_be_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def reformat(self, *_: object, **__: object) -> None:
            raise av.error.FFmpegError(95, "Operation not supported")

    path = write_clip(tmp_path / "a.mp4", frames=3)
    monkeypatch.setattr("av.video.reformatter.VideoReformatter", Broken)
    with pytest.raises(InputError, match="cannot convert a picture of 96x64 yuv420p to RGB: "):
        read_video(path)


@pytest.mark.parametrize("angle", [0, 90, 180, 270])
def test_the_angle_where_side_data_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, angle: int
) -> None:
    class Unknown:
        def __init__(self, frame: object) -> None:
            raise ValueError("31 is not a valid Type")

    path = write_clip(tmp_path / "a.mp4", frames=3, rotation=angle)
    monkeypatch.setattr("av.sidedata.sidedata.SideDataContainer", Unknown)
    assert number_of(read_video(path).frames[0]) == 0


def test_an_exception_that_is_kept_keeps_nothing() -> None:
    alive: list[int] = []

    class Held:
        def __init__(self) -> None:
            alive.append(1)

        def __del__(self) -> None:
            alive.pop()

    @pyav.frees_on_error
    def read() -> None:
        held = Held()
        try:
            raise ValueError("inner")
        except ValueError:
            raise InputError(f"outer {held is None}") from None

    with pytest.raises(InputError) as kept:
        read()
    assert str(kept.value) == "outer False" and not alive

# SPDX-License-Identifier: Apache-2.0
"""Pictures and frames in the layouts and number types that are in use are the same pixels."""

from __future__ import annotations

import io
import logging

import numpy as np
import pytest
import torch
from PIL import Image
from toy import toy_processor, toy_video

from tdc import InputError
from tdc.processor.frames import picture, rgb, stacked

FRAMES = toy_video(3, (8, 6))
FIRST = torch.from_numpy(FRAMES).permute(0, 3, 1, 2)
STILLS = [Image.fromarray(frame) for frame in FRAMES]


@pytest.mark.parametrize(
    "video",
    [
        FRAMES,
        FRAMES.astype(np.float32) / 255,
        FRAMES.astype(np.float16) / 255,
        FRAMES.astype(np.float64),
        FIRST,
        FIRST.float() / 255,
        (FIRST.float() / 255).requires_grad_(),
        FIRST.numpy(),
        np.concatenate([FRAMES, FRAMES[..., :1]], axis=-1),
        torch.cat([FIRST, FIRST[:, :1]], dim=1),
    ],
)
def test_layouts_and_number_types_of_videos(video):
    np.testing.assert_array_equal(rgb(video, "video"), FRAMES)


def test_half_precision_and_grey():
    half = rgb((FIRST / 255).bfloat16(), "video")
    assert np.abs(half.astype(int) - FRAMES).max() <= 1
    grey = rgb(FRAMES[..., :1], "video")
    assert grey.shape == FRAMES.shape and (grey == FRAMES[..., :1]).all()
    ones = rgb(np.ones((2, 5, 6, 3), np.float32), "video")
    assert (ones == 255).all()


@pytest.mark.parametrize(
    "still",
    [
        FRAMES[0],
        FIRST[0],
        FIRST[0].numpy() / np.float32(255),
        STILLS[0],
        STILLS[0].convert("RGBA"),
        {"bytes": None, "path": "a.png"},
    ],
)
def test_stills(still, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    STILLS[0].save("a.png")
    np.testing.assert_array_equal(picture(still), FRAMES[0])


def test_a_picture_is_upright_as_a_file_and_as_an_object():
    turned = Image.Exif()
    turned[0x0112] = 6
    file = io.BytesIO()
    STILLS[0].save(file, "PNG", exif=turned)
    upright = np.rot90(FRAMES[0], -1)
    np.testing.assert_array_equal(picture(file), upright)
    np.testing.assert_array_equal(picture(Image.open(file)), upright)
    grey = picture(STILLS[0].convert("L"))
    assert grey.shape == FRAMES[0].shape and (grey[..., 0] == grey[..., 2]).all()


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (FRAMES.astype(np.float32), None),
        (FRAMES * 0.9, r"video holds floats of .*; expected \[0, 1\], or uint8"),
        (FRAMES / 127.5 - 1, "video holds floats of -1 to 1; expected"),
        (np.full((1, 5, 5, 3), np.nan), "video holds floats of nan to nan"),
        (FRAMES.astype(np.int64), r"video is int64 \[3, 6, 8, 3\]; expected uint8 \[T, H, W, 3\]"),
        (np.zeros((2, 3, 6, 3), np.uint8), "may have its channels first or last"),
        (np.zeros((2, 6, 6, 5), np.uint8), "has no axis of 3 channels"),
        (np.zeros((6, 6, 3), np.uint8), r"video is uint8 \[6, 6, 3\]; expected"),
        ("words", "video is 'words'; expected a file or an array"),
    ],
)
def test_what_may_mean_two_things_is_refused(video, message):
    if message is None:
        assert (rgb(video, "video") == FRAMES).all()
        return
    with pytest.raises(InputError, match=message):
        rgb(video, "video")


def test_a_list_of_stills_is_one_video(tmp_path):
    names = []
    for number, still in enumerate(STILLS):
        names.append(str(tmp_path / f"{number}.png"))
        still.save(names[-1])
    processor = toy_processor()
    expected = processor(text="<video>", videos=[FRAMES], audio=[False])
    mixed = [names[0], STILLS[1], FRAMES[2]]
    for frames in (STILLS, names, [FRAMES[0], *STILLS[1:]], [STILLS], [names], [[STILLS]], [mixed]):
        inputs = processor(text="<video>", videos=frames)
        assert torch.equal(inputs["siglip_pixels"], expected["siglip_pixels"])
        assert inputs["frame_times"].tolist() == [0, 1, 2]
    part = {"type": "video", "video": names, "fps": 2}
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": [part]}], tokenize=True, return_dict=True
    )
    assert inputs["frame_times"].tolist() == [0, 0.5, 1]
    assert inputs["media_spans"].tolist() == [[0, 1.5]]
    with pytest.raises(InputError, match="pictures of 4 x 3 and 8 x 6; expected pictures of one"):
        stacked([STILLS[0], STILLS[1].resize((4, 3))])


def test_two_videos_are_not_two_stills(tmp_path):
    with pytest.raises(InputError, match="no such file: a"):
        toy_processor()(text=["<video>", "<video>"], videos=[["a.mp4"], ["b.mp4"]])


def test_frames_of_an_array_are_chosen(caplog):
    processor = toy_processor()

    def times(video=FRAMES, **options):
        inputs = processor(text="<video>", videos=[video], **options)
        return inputs["frame_times"].tolist()

    long = toy_video(12, (8, 6))
    assert times(long, num_frames=4) == [0, 3, 6, 9]
    assert times(long, num_frames=4, fps=2) == [0, 1.5, 3, 4.5]
    assert times(long, start=2, end=5) == [2, 3, 4]
    assert times(long, start=2, end=6, num_frames=2) == [2, 4]
    assert times(long, start=5, max_frames=2) == [5, 8]
    assert times(num_frames=6) == [0, 0, 1, 1, 2, 2]
    with pytest.raises(InputError, match="start: got 9 s, but no frame"):
        times(start=9)
    with caplog.at_level(logging.WARNING, "tdc"):
        assert len(times(long, num_frames=6, max_frames=3)) == 3
    assert "num_frames is 6; 3 evenly spaced frames fit the budget" in caplog.text

# SPDX-License-Identifier: Apache-2.0
"""FFmpeg's own command as the judge of what a file shows and plays when.

It decodes every clip from beginning to end; `read_video` and `read_audio` have to agree with it in
pictures, times, duration and in where the sound begins.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import ffmpeg_command as ffmpeg
import numpy as np
import pytest
from clips import numbers_of

from tdc.media.audio import read_audio
from tdc.media.video import read_video

H264 = "-c:v libx264 -preset ultrafast -crf 12 -g 10 -pix_fmt yuv420p -bf 2"
H264_NO_B = "-c:v libx264 -preset ultrafast -crf 12 -g 10 -pix_fmt yuv420p -bf 0"
HEVC = (
    "-c:v libx265 -preset ultrafast -crf 12 -pix_fmt yuv420p "
    "-x265-params keyint=12:open-gop=1:bframes=3:log-level=none"
)
MPEG2, MPEG4 = "-c:v mpeg2video -q:v 2 -bf 2", "-c:v mpeg4 -q:v 2 -bf 2"
VP9 = "-c:v libvpx-vp9 -cpu-used 8 -crf 10 -b:v 0 -pix_fmt yuv420p"
AV1 = "-c:v libsvtav1 -preset 12 -crf 20 -pix_fmt yuv420p -svtav1-params keyint=10"
DV = "-c:v dvvideo -vf scale=720:576,format=yuv420p"
# Pauses after frames 10 and 30 and uneven steps.
UNEVEN = (
    "-vf setpts='(N+if(gt(N,10),20,0)+if(gt(N,30),37,0)+mod(N,3)/4)/(25*TB)',settb=1/1000 "
    "-fps_mode vfr -enc_time_base 1/1000"
)
BEEP = "-af volume='if(between(t,1.4,1.6),1,0)':eval=frame"
LATE = "-vf setpts=PTS+1/TB"


@dataclass(frozen=True)
class Clip:
    """A clip to be made; `within` is how far (s) its end may be from the command's."""

    name: str
    arguments: str = ""
    fps: str = "25"
    frames: int = 50
    sound: bool = False
    within: float = 0.005
    raw: bool = False  # without time stamps: the reader says so


# Of each container one codec or more, and of each codec one container.
FAST = [
    Clip("b_frames.mp4", H264),
    Clip("open_groups.ts", HEVC),
    Clip("b_frames.avi", H264),
    Clip("b_frames.h264", H264, raw=True),
    Clip("tenth.y4m", "-pix_fmt yuv420p", fps="1/10", frames=12),
    Clip("late.mkv", f"{LATE} {H264} {BEEP} -c:a aac", sound=True),
]
SLOW = [
    *(
        Clip(f"h264.{kind}", H264)
        for kind in ["mov", "3gp", "m2ts", "flv", "f4v", "nut", "mkv", "ts"]
    ),
    Clip("fragments.mp4", f"{H264} -movflags frag_keyframe+empty_moov"),
    Clip("shifted.mp4", f"{H264} -output_ts_offset 5"),
    Clip("shifted.ts", f"{H264} -output_ts_offset 5"),
    Clip("before_zero.mp4", f"{H264} -output_ts_offset -1 -avoid_negative_ts disabled"),
    Clip("h264.vob", f"{H264} -f vob", raw=True),
    Clip("interlaced.ts", f"{H264} -flags +ilme+ildct"),
    Clip("open_groups.mp4", HEVC),
    Clip("open_groups.mkv", HEVC),
    Clip("b_frames.hevc", HEVC, raw=True),
    Clip("thirty.h264", H264, fps="30", raw=True),
    Clip("in_order.h264", H264_NO_B, raw=True),
    Clip("a.m1v", "-c:v mpeg1video -q:v 2 -bf 2", raw=True),
    Clip("a.m2v", MPEG2, raw=True),
    Clip("a.m4v", f"{MPEG4} -f m4v", raw=True),
    Clip("a.mjpeg", "-c:v mjpeg -q:v 2", raw=True),
    Clip("a.h263", "-c:v h263 -q:v 2 -s 176x144", fps="30000/1001", raw=True),
    Clip("a.obu", AV1, raw=True),
    Clip("mpeg1.mpg", "-c:v mpeg1video -q:v 2 -bf 2"),
    *(Clip(f"mpeg2.{kind}", MPEG2) for kind in ["mpg", "vob", "ts", "mxf", "wtv"]),
    Clip("mpeg2.gxf", "-c:v mpeg2video -q:v 2 -vf scale=720:576", within=0.05),
    *(Clip(f"mpeg4.{kind}", MPEG4) for kind in ["avi", "mp4", "mkv"]),
    Clip("mpeg4.3gp", "-c:v mpeg4 -q:v 2"),
    Clip("in_order.avi", H264_NO_B),
    Clip("ntsc.avi", H264_NO_B, fps="30000/1001"),
    *(Clip(f"{name}.avi", f"-c:v {name}") for name in ["mjpeg", "ffvhuff", "rawvideo", "cinepak"]),
    Clip("wmv2.wmv", "-c:v wmv2 -q:v 2"),
    Clip("wmv1.asf", "-c:v wmv1 -q:v 2"),
    Clip("msmpeg4.avi", "-c:v msmpeg4 -q:v 2"),
    Clip("sorenson.flv", "-c:v flv -q:v 2"),
    Clip("rv20.rm", "-c:v rv20 -q:v 2"),
    Clip("flash.swf", "-c:v mjpeg -q:v 2"),
    Clip("theora.ogv", "-c:v libtheora -q:v 9 -pix_fmt yuv420p"),
    Clip("vp8.webm", "-c:v libvpx -deadline realtime -cpu-used 8 -crf 6 -b:v 2M -pix_fmt yuv420p"),
    Clip("vp9.webm", f"{VP9} -auto-alt-ref 1 -lag-in-frames 10"),
    Clip("vp9.ivf", VP9),
    *(Clip(f"av1.{kind}", AV1) for kind in ["mp4", "mkv", "ivf"]),
    *(Clip(f"dv.{kind}", DV) for kind in ["dv", "avi", "mov"]),
    Clip("prores.mov", "-c:v prores_ks -pix_fmt yuv422p10le"),
    Clip("dnxhr.mxf", "-c:v dnxhd -profile:v dnxhr_lb -vf scale=320:128,format=yuv422p"),
    Clip("animation.mov", "-c:v qtrle"),
    Clip("ffv1.mkv", "-c:v ffv1"),
    Clip("raw.nut", "-c:v rawvideo -pix_fmt yuv420p"),
    Clip("a.gif"),
    Clip("a.apng", "-c:v apng"),
    Clip("vvc.mp4", "-c:v libvvenc -preset faster -qp 15 -pix_fmt yuv420p10"),
    *(Clip(f"tenth.{kind}", H264, "1/10", 12) for kind in ["mp4", "mkv", "ts", "flv"]),
    Clip("twentieth.ts", H264, "1/20", 12),
    Clip("tenth.avi", H264_NO_B, "1/10", 12),
    Clip("tenth.gif", fps="1/10", frames=12),
    *(Clip(f"one.{kind}", H264, frames=1) for kind in ["mp4", "mkv", "ts", "flv"]),
    Clip("one.gif", frames=1),
    Clip("one.avi", H264_NO_B, frames=1),
    Clip("one.h264", H264, frames=1, raw=True),
    *(Clip(f"uneven.{kind}", f"{UNEVEN} {H264}") for kind in ["mp4", "mkv", "ts", "flv"]),
    Clip("uneven.avi", f"{UNEVEN} {H264_NO_B}"),
    Clip("uneven.webm", f"{UNEVEN} {VP9}"),
    Clip("uneven.wmv", f"{UNEVEN} -c:v wmv2 -q:v 2"),
    Clip("uneven.ogv", f"{UNEVEN} -c:v libtheora -q:v 9 -pix_fmt yuv420p", within=0.05),
    Clip("uneven.gif", UNEVEN),
    Clip("uneven.apng", f"{UNEVEN} -c:v apng"),
    *(
        Clip(f"sound.{kind}", f"{H264} {BEEP} -c:a aac -ar 44100", sound=True)
        for kind in ["mp4", "mkv", "ts", "m2ts", "mov", "flv", "nut"]
    ),
    Clip("sound.avi", f"{H264_NO_B} {BEEP} -c:a mp3", sound=True),
    Clip("sound.mpg", f"{MPEG2} {BEEP}", sound=True),
    Clip("sound.mxf", f"{MPEG2} {BEEP}", sound=True),
    Clip("sound.webm", f"{VP9} {BEEP} -c:a libopus", sound=True),
    Clip("sound.wmv", f"-c:v wmv2 -q:v 2 {BEEP}", sound=True),
    Clip("sound.ogv", f"-c:v libtheora -q:v 9 -pix_fmt yuv420p {BEEP}", sound=True),
    Clip("late.mp4", f"{LATE} {H264} {BEEP} -c:a aac", sound=True),
    Clip("late.ts", f"{LATE} {H264} {BEEP} -c:a aac", sound=True),
]


def make(folder: Path, clip: Clip) -> Path:
    sine = ["-f", "lavfi", "-i", "sine=f=1000:r=48000:d=2"] if clip.sound else []
    return ffmpeg.encode(
        folder / clip.name,
        *clip.arguments.split(),  # quotes in them are the filters' own
        fps=clip.fps,
        frames=clip.frames,
        sound=sine,
    )


def onset(wave: np.ndarray) -> float:
    """Seconds to the first loud sample, at 16 kHz."""
    return float(np.argmax(np.abs(wave) > 0.03)) / 16000


def check(path: Path, clip: Clip) -> None:
    judge = ffmpeg.shown(path, sound=clip.sound)
    # A rate that shares no multiple with the clips', so that samples fall anywhere in a frame.
    video = read_video(path, fps=31 if judge.end < 3 else 63 / judge.end)
    # Time stamps are rounded to 1 ms in some containers: there both neighbours are right.
    sides = [judge.at(video.timestamps + late) for late in (-0.0015, 0, 0.0015)]
    shown = numbers_of(video.frames)
    wrong = [
        (round(float(time), 3), number, right)
        for time, number, *right in zip(video.timestamps, shown, *sides, strict=True)
        if number not in right
    ]
    assert not wrong, f"{len(wrong)} of {len(shown)} (time, number, FFmpeg's): {wrong[:6]}"
    assert video.duration == pytest.approx(judge.end, abs=clip.within)
    assert len(video.warnings) == clip.raw, video.warnings
    if judge.sound is not None:
        # Both resample in their own way; an AAC frame is 0.021 s.
        begins = judge.sound_start + onset(judge.sound)
        assert onset(read_audio(path)) == pytest.approx(begins, abs=0.01)


@pytest.mark.parametrize("clip", FAST, ids=lambda clip: clip.name)
def test_agrees_with_the_command(tmp_path: Path, clip: Clip) -> None:
    check(make(tmp_path, clip), clip)


@pytest.mark.slow
@pytest.mark.parametrize("clip", SLOW, ids=lambda clip: clip.name)
def test_agrees_with_the_command_in_every_container(tmp_path: Path, clip: Clip) -> None:
    check(make(tmp_path, clip), clip)

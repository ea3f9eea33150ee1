# SPDX-License-Identifier: Apache-2.0
"""Nothing stays behind once a file was read: no thread, no decoder, no memory, no circle.

Each test runs a process of its own, without the garbage collector: what waits for it would be met
in a forked process, where joining a decoder's threads hangs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from clips import tone, write_clip

from tdc.media.audio import read_audio

_HEAD = """
import gc, json, os, sys, threading
gc.disable()
from tdc.errors import InputError
from tdc.media.audio import has_audio, read_audio
from tdc.media.video import probe, read_video

def threads():
    return len(os.listdir("/proc/self/task"))

def memory():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

def alive():
    names = {type(x).__name__ for x in gc.get_objects() if str(type(x)).startswith("<class 'av.")}
    return sorted(names & set(NATIVE.split()))

NATIVE = (
    "VideoFrame AudioFrame Packet InputContainer StreamContainer VideoStream AudioStream Graph "
    "VideoCodecContext AudioCodecContext VideoReformatter FilterContext FilterLink SideData "
    "SideDataContainer AudioResampler"
)
path, before = sys.argv[1], threads()
"""


def run(code: str, *arguments: Any, timeout: float = 60) -> Any:
    command = [sys.executable, "-c", _HEAD + code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clips") / "fast.mp4"
    return write_clip(path, frames=480, fps=240, size=(160, 96), gop=60, audio=tone(2))


def test_400_samples_take_the_decoder_s_threads_and_memory(clip: Path) -> None:
    seen = run(
        """
seen = []
video = read_video(path, fps=200, progress=lambda done, _: seen.append((threads(), memory())))
print(json.dumps([seen, before, threads(), memory(), alive()]))
""",
        clip,
    )
    samples, before, after, memory, alive = seen
    counts = [count for count, _ in samples]
    assert len(samples) == 400 and max(counts) == counts[0]
    assert after == before and alive == []
    # 400 frames of 160 x 96 are 18 MB; a scaler for each was another 90.
    assert max(memory, *(m for _, m in samples)) - samples[0][1] < 18 + 16


@pytest.mark.parametrize(
    "code",
    [
        """
read_audio(path), read_audio(path, sample_rate=48000, channel="first", end=0.5)
probe(path), has_audio(path), read_video(path, max_side=32, end=0.3)
""",
        """
def fail(done, total):
    raise KeyError("stopped")

try:
    read_video(path, progress=fail)
except KeyError as error:
    kept = error
""",
        """
kept = []
for read in (read_video, read_audio, probe, has_audio):
    size = os.path.getsize(path)
    for position in range(0, size, size // 20):
        with open(path, "rb") as file:
            data = bytearray(file.read())
        data[position : position + 1500] = bytes(1500)
        with open(path + ".bad", "wb") as file:
            file.write(data)
        try:
            read(path + ".bad")
        except InputError as error:
            kept.append(error)
assert kept
""",
    ],
    ids=["whole", "stopped", "damaged"],
)
def test_nothing_waits_for_the_garbage_collector(clip: Path, code: str) -> None:
    code += "\nprint(json.dumps([threads() - before, alive()]))"
    assert run(code, clip) == [0, []]


@pytest.mark.slow
def test_reading_again_takes_no_more_memory(clip: Path) -> None:
    growth = run(
        """
for k in range(24):
    read_video(path, max_frames=8), read_audio(path)
    first = memory() if k == 7 else 0 if k < 7 else first
print(json.dumps(memory() - first))
""",
        clip,
    )
    assert growth < 8


def test_a_forked_process_reads_and_collects(clip: Path) -> None:
    """Also while several threads read in the parent."""
    answers = run(
        """
import multiprocessing
reads = [threading.Thread(target=read_video, args=(path,), kwargs={"fps": 100}) for _ in range(3)]
frames = read_video(path, fps=100).frames

def child(answers):
    gc.collect()
    again = read_video(path, fps=100).frames
    gc.collect()
    answers.put([bool((again == frames).all()), len(read_audio(path))])

context = multiprocessing.get_context("fork")
answers = context.Queue()
for thread in reads:
    thread.start()
for thread in reads:
    thread.join()
children = [context.Process(target=child, args=(answers,)) for _ in range(2)]
for process in children:
    process.start()
print(json.dumps([answers.get(timeout=30) for _ in children]))
""",
        clip,
    )
    assert answers == [[True, len(read_audio(clip))]] * 2


@pytest.mark.slow
@pytest.mark.parametrize("start", ["fork", "spawn", "forkserver"])
def test_the_workers_of_a_data_loader_decode(clip: Path, start: str, tmp_path: Path) -> None:
    script = tmp_path / "load.py"
    script.write_text(
        _HEAD
        + """
from torch.utils.data import DataLoader, Dataset

class Clips(Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, index):
        gc.collect()
        video = read_video(path, fps=50, max_frames=32)
        gc.collect()
        return video.frames.mean() + read_audio(path).std()

if __name__ == "__main__":
    read_video(path, fps=200), read_audio(path)
    clips = DataLoader(Clips(), num_workers=2, multiprocessing_context=sys.argv[2], timeout=60)
    print(json.dumps(len({round(float(x), 6) for x in clips})))
"""
    )
    command = [sys.executable, str(script), str(clip), start]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == 1


@pytest.mark.slow
def test_threads_read_at_once(clip: Path) -> None:
    same = run(
        """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(6) as pool:
    found = list(pool.map(lambda _: read_video(path, fps=30).frames.tobytes(), range(12)))
    heard = list(pool.map(lambda _: read_audio(path).tobytes(), range(12)))
print(json.dumps([len(set(found)), len(set(heard)), threads() - before, alive()]))
""",
        clip,
    )
    assert same == [1, 1, 0, []]

# SPDX-License-Identifier: Apache-2.0
"""PyAV, imported when the first file is opened: the model itself runs without it.

Where PyAV's versions differ (15 to 19) is decided here. So is what would outlive its use: PyAV ties
some objects into circles, and what waits for the garbage collector may meet it in a forked process,
where a decoder's or scaler's threads no longer exist and joining them hangs or crashes.
"""

from __future__ import annotations

import functools
import gc
import itertools
import math
import traceback
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import numpy as np

from ..errors import InputError

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def __getattr__(name: str) -> Any:
    import av

    return getattr(av, name)


def _version() -> int:
    import av

    return int(av.__version__.split(".")[0])


def frees_on_error(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Decorator: an exception that somebody keeps does not keep the decoder it came from."""

    @functools.wraps(function)
    def wrapper(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            passed: BaseException | None = error
            while passed is not None:
                traceback.clear_frames(passed.__traceback__)
                passed = passed.__context__
            raise

    return wrapper


def open_input(url: str, options: dict[str, str]) -> Any:
    """PyAV's input container; metadata that is no UTF-8 is no error."""
    import av

    lenient: Any = {"metadata_errors": "replace"} if _version() < 19 else {}
    return av.open(url, container_options=options, **lenient)


def display_matrix(frame: Any) -> list[float] | None:
    """The four numbers [a, b, c, d] of a frame's display matrix, up to a factor; None without one.

    `frame.side_data` would tie the frame into a circle.
    """
    from av.sidedata import sidedata

    container: Any = sidedata.SideDataContainer
    try:
        data = container(frame).get("DISPLAYMATRIX")
    except ValueError:  # side data of a kind that this PyAV does not know: the angle is left
        angle = math.radians(frame.rotation)
        return [math.cos(angle), -math.sin(angle), math.sin(angle), math.cos(angle)]
    if data is None:
        return None
    a, b, _, c, d = np.frombuffer(data, dtype=np.int32)[:5].tolist()
    return [a, b, c, d]


class Scaler:
    """Converts frames to RGB arrays of any size.

    One for all frames of a file, in one thread: with `frame.reformat` each frame that is alive
    keeps a scaler with a thread per core (PyAV 17 and 18).
    """

    def __init__(self) -> None:
        from av.video.reformatter import VideoReformatter

        self._reformatter = VideoReformatter()
        self._threads: Any = {"threads": 1} if _version() >= 17 else {}

    def rgb(self, frame: Any, width: int, height: int) -> np.ndarray:
        """uint8 [height, width, 3]. Raises `InputError` for pixels that FFmpeg cannot convert."""
        import av

        size: Any = {"width": width, "height": height, "interpolation": "BICUBIC"}
        try:
            scaled = self._reformatter.reformat(frame, format="rgb24", **size, **self._threads)
        except (av.error.FFmpegError, ValueError, MemoryError) as error:
            about = f"{frame.width}x{frame.height} {frame.format.name}"
            raise InputError(f"cannot convert a picture of {about} to RGB: {error}") from None
        return scaled.to_ndarray()


class Resampler:
    """Sound frames of one form to packed 32-bit floats, at `rate` Hz if that is given.

    Like `av.AudioResampler`, whose graph of filters has a thread per core and, in PyAV 19, is tied
    into a circle.
    """

    def __init__(self, frame: Any, rate: int | None = None) -> None:
        import av

        self._graph = graph = av.filter.Graph()
        if hasattr(graph, "threads"):  # since 17
            graph.threads = 1
        layout, form = frame.layout.name, frame.format.name
        nodes = [
            graph.add(
                "abuffer",
                sample_rate=f"{frame.sample_rate}",
                sample_fmt=form,
                channel_layout=layout,
                time_base=f"1/{frame.sample_rate}",
            ),
            graph.add(
                "aformat",
                sample_rates=f"{rate or frame.sample_rate}",
                sample_fmts="flt",  # packed: PyAV reads planes beyond the eighth from nowhere
                channel_layouts=layout,
            ),
            graph.add("abuffersink"),
        ]
        for source, target in itertools.pairwise(nodes):
            source.link_to(target)
        graph.configure()

    def __del__(self) -> None:
        for held in gc.get_referents(self._graph):
            if isinstance(held, dict):
                held.clear()

    def convert(self, frame: Any) -> list[np.ndarray]:
        """Arrays float32 [n, channels] for the next frame, or for None, the end."""
        import av

        parts: list[np.ndarray] = []
        self._graph.push(frame)
        while True:
            try:
                out: Any = self._graph.pull()
            except (av.error.EOFError, av.error.BlockingIOError):
                return parts
            if out.samples:
                parts.append(out.to_ndarray().reshape(out.samples, -1))


def forget_positions(stream: Any) -> None:
    """Take the channels of a sound stream as so many without a place; before it is decoded.

    PyAV frees the list of channels in an unusual order twice (17 and 18), as in a film's MOV.
    """
    count = stream.codec_context.channels  # asked once: every time frees the list
    if count:
        stream.codec_context.layout = f"{count} channels"

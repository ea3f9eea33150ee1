# SPDX-License-Identifier: Apache-2.0
"""Encode a video once, ask about it any number of times.

model = tdc.load("converted-tdc")
video = model.watch("video.mp4")
video.ask("Who is there?")
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TextIteratorStreamer

from tdc_kernels import ContextPlan

from .answer import ask, chat_prompt
from .checkpoints.load import Loaded, load_model
from .config import TDCConfig
from .encoder.features import VideoFeatures
from .encoder.scenes import Scene, scenes
from .errors import InputError
from .lvcot import PROMPTS, Prompts, SegmentAnswer, answer_segments, frames_per_segment
from .media.media_file import MediaFile
from .media.source import local
from .model import Context
from .processor.budget import context_room, frame_budget
from .processor.media_lists import Clip

# Called with the activity, the frames done and all frames.
Progress = Callable[[str, int, int], None]
ANSWER_TOKENS = 256  # longest answer where nobody asks for another length
_MEDIA = ("siglip_pixels", "dinov2_pixels", "waveforms")  # 200 MB of a video of 224 frames


class Answer(str):
    """An answer; ``thoughts`` are those of its segments where LVCoT was asked for."""

    thoughts: tuple[SegmentAnswer, ...]

    def __new__(cls, text: str, thoughts: tuple[SegmentAnswer, ...] = ()) -> Answer:
        answer = super().__new__(cls, text)
        answer.thoughts = thoughts
        return answer


def load(
    model_dir: str | os.PathLike[str] | None = None,
    *,
    device: str | None = None,
    dtype: str | None = None,
) -> Session:
    """A model ready to watch videos; arguments and errors: :func:`tdc.checkpoints.load.load_model`.

    Without a folder the tiny TDC of the package, which knows drawn clips alone.
    """
    loaded = load_model(model_dir, device, dtype)
    return Session(loaded.model, loaded.processor, loaded.note, loaded.tiny)


@dataclass(frozen=True)
class Session(Loaded):
    """A model and its processor."""

    def watch(
        self,
        video: Any,
        audio: Any = None,
        *,
        question: str = "",
        segments: int = 1,
        fps: float | None = None,
        num_frames: int | None = None,
        max_frames: int | None = None,
        start: float | None = None,
        end: float | None = None,
        sampling_rate: int | None = None,
        progress: Progress | None = None,
        keep_media: bool = False,
    ) -> WatchedVideo:
        """Decode and encode a video, once for all questions; no gradients are kept.

        Args:
            video, audio, sampling_rate: as for :class:`tdc.TDCProcessor`. A file object is read
                here; it may be closed afterwards.
            question: the longest one to come: as many frames are taken as leave room for it.
            segments: how many LVCoT will be asked for: more than one takes more frames.
            fps, num_frames: sampled frames per second, or so many evenly spaced ones; default:
                ``config.fps``.
            max_frames: frames instead of what the token budget allows.
            start, end: seconds; only [start, end) is watched and heard. All times that are told
                stay those of the whole video.
            progress: called as ``progress("decoding the video", done, total)`` with frames, and
                likewise for ``"encoding the frames"``.
            keep_media: keep pixels and waveform in ``inputs``.

        Raises:
            InputError: a file that cannot be read, a question that leaves no room for a video.
        """
        options = {"fps": fps, "num_frames": num_frames, "start": start, "end": end}
        options["sampling_rate"] = sampling_rate
        watched = WatchedVideo(self, video, audio, question, options)
        watched._encode(segments, max_frames, progress, keep_media)
        return watched


class WatchedVideo:
    """An encoded video to ask about.

    Attributes:
        features: all that does not depend on a question.
        inputs: what the processor made of the video (pixels and waveform on request only).
        duration: seconds of the whole video.
        start, end: seconds between which it was watched.
    """

    features: VideoFeatures
    inputs: dict[str, Any]
    duration: float
    start: float
    end: float

    def __init__(
        self, session: Session, video: Any, audio: Any, question: str, options: dict[str, Any]
    ) -> None:
        self.session = session
        # Bytes stay in a temporary file as long as this object: more segments encode again.
        self._source = local(video, "video"), _sound(audio)
        self._question, self._options = question, options
        self._segments: tuple[int, VideoFeatures] | None = None  # of the last LVCoT

    def ask(
        self,
        question: str,
        *,
        segments: int = 1,
        segment_tokens: int = 128,
        prompts: Prompts = PROMPTS,
        on_segment: Callable[[int, SegmentAnswer], None] | None = None,
        **generate: Any,
    ) -> Answer:
        """Answer one question.

        Args:
            segments: more than one: LVCoT (paper, section 3.3), for very long videos. Where
                ``watch`` was not told of so many, the video is encoded again, on more frames.
            segment_tokens, prompts, on_segment: see :func:`tdc.lvcot.answer_segments`.
            generate: options of ``model.generate``; ``max_new_tokens`` is 256 unless given.

        Raises:
            InputError: an empty question, or one that does not fit the context.
        """
        if not question.strip():
            raise InputError("the question is empty; expected a text")
        if segments < 1:
            raise InputError(f"segments is {segments}; expected at least 1")
        generate.setdefault("max_new_tokens", ANSWER_TOKENS)
        model, processor = self.session.model, self.session.processor
        if segments == 1:
            return Answer(ask(model, processor, self.features, [question], **generate)[0])
        found = answer_segments(
            model,
            processor,
            self._for_segments(question, segments, prompts),
            question,
            segments,
            end=self.end,
            segment_tokens=segment_tokens,
            prompts=prompts,
            on_segment=on_segment,
            **generate,
        )
        return Answer(found.answer, found.segments)

    def stream(self, question: str, **options: Any) -> Iterator[str]:
        """The answer in pieces as they are made; arguments and errors as for :meth:`ask`.

        The model answers in a thread of its own, which ends when the iterator is closed.
        """
        streamer = TextIteratorStreamer(self.session.processor.tokenizer, skip_special_tokens=True)
        left = threading.Event()
        failure: list[BaseException] = []

        def stop(ids: torch.Tensor, *_: Any) -> torch.Tensor:
            return torch.full((len(ids),), left.is_set(), device=ids.device)

        def answer() -> None:
            criteria = [*options.pop("stopping_criteria", []), stop]
            try:
                self.ask(question, streamer=streamer, stopping_criteria=criteria, **options)
            except BaseException as error:  # raised where the pieces are read
                failure.append(error)
            streamer.end()

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        try:
            for piece in streamer:
                if piece:
                    yield piece
        finally:
            left.set()
            thread.join()
        if failure:
            raise failure[0]

    def context(self, question: str = "") -> Context:
        """Context tokens for one question, as a language model's prompt takes them."""
        model, processor = self.session.model, self.session.processor
        ids = processor.encode_prompts([chat_prompt(processor, question)], question)
        with torch.no_grad():
            return model.build_context(
                self.features,
                ids["question_ids"] if question else None,
                ids["question_mask"] if question else None,
                self._room(question),
            )

    @property
    def plan(self) -> ContextPlan:
        """Layout of the context beside the question given to ``watch``."""
        return self.session.model.plan_context(self.features, self._room(self._question))

    @property
    def scenes(self) -> list[Scene]:
        """The scenes that the frames were cut into."""
        return scenes(self.features.segmentation, self.features.times, self.end, self.start)

    @property
    def _config(self) -> TDCConfig:
        return self.session.model.config

    def _prompt_length(self, question: str) -> int:
        processor = self.session.processor
        return len(processor.prompt_ids(chat_prompt(processor, question)))

    def _room(self, question: str) -> int:
        """Tokens for the video beside the prompt, whose placeholder is not text."""
        return context_room(self._config, self._prompt_length(question) - 1)

    def _encode(
        self, segments: int, max_frames: int | None, progress: Progress | None, keep_media: bool
    ) -> None:
        if segments > 1:
            budget = max_frames or frame_budget(self._config, self._prompt_length(self._question))
            room = self._segment_frames(self._question, segments, PROMPTS)
            inputs, dense = self._look(max(budget, room), progress, keep_dinov2=True)
            self._segments, self.features = (segments, dense), self._thinned(dense, budget)
        else:
            inputs, self.features = self._look(max_frames, progress)
        video = self._source[0]
        self.start, self.end = inputs["media_spans"][0].tolist()
        whole = video.duration if isinstance(video, MediaFile) else self.end
        self.duration = max(whole, self.end)
        self.inputs = {k: v for k, v in inputs.items() if keep_media or k not in _MEDIA}

    def _segment_frames(self, question: str, segments: int, prompts: Prompts) -> int:
        return segments * frames_per_segment(self.session.processor, question, prompts)

    def _for_segments(self, question: str, segments: int, prompts: Prompts) -> VideoFeatures:
        """Features on at most as many frames as ``segments`` have room for."""
        frames = self._segment_frames(question, segments, prompts)
        if self._segments is None or self._segments[0] < segments:
            self._segments = segments, self._look(frames, None, keep_dinov2=True)[1]
        return self._thinned(self._segments[1], frames)

    def _thinned(self, features: VideoFeatures, frames: int) -> VideoFeatures:
        config = self._config
        return features.sample(frames, config.num_scenes, config.similarity_threshold)

    def _look(
        self, max_frames: int | None, progress: Progress | None, keep_dinov2: bool = False
    ) -> tuple[Any, VideoFeatures]:
        def of(what: str) -> Callable[[int, int], None] | None:
            return None if progress is None else lambda done, total: progress(what, done, total)

        model, processor = self.session.model, self.session.processor
        video, audio = self._source
        inputs = processor(
            text=chat_prompt(processor, self._question),
            videos=[Clip(video)],
            audio=[audio],
            question=self._question,
            max_frames=max_frames,
            progress=of("decoding the video"),
            **self._options,
        )
        frames = int(inputs["media_frames"].sum())
        with torch.no_grad(), watch_towers(model, frames, of("encoding the frames")):
            features = model.encode_video(keep_dinov2=keep_dinov2, **inputs.to(model.device))
        return inputs, features


def _sound(audio: Any) -> Any:
    """Sound that can be read again; (array, rate), silence and the like stay as they are."""
    return audio if audio is None or isinstance(audio, (bool, tuple)) else local(audio, "audio")


@contextmanager
def watch_towers(
    model: Any, num_frames: int, update: Callable[[int, int], None] | None
) -> Iterator[None]:
    """Report frames as they leave the towers; a frame through one of two is half done."""
    encoder = getattr(model, "video_encoder", None)
    towers = [model] if encoder is None else [encoder.siglip, encoder.dinov2]
    towers = [tower for tower in towers if tower is not None]
    done = 0

    def count(_module: Any, inputs: tuple[Any, ...], *_: Any) -> None:
        nonlocal done
        done += len(inputs[0])
        if update is not None:
            update(done, num_frames * len(towers))

    handles = [tower.model.register_forward_hook(count) for tower in towers if update is not None]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

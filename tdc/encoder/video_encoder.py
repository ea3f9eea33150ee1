# SPDX-License-Identifier: Apache-2.0
"""Frames and sound to ``VideoFeatures``: towers, connector, BEATs, cuts; no question involved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from ..config import TDCConfig
from ..errors import InputError
from ..profiling import stage
from .audio_tokens import audio_tokens
from .beats import BEATs, BEATsConfig
from .connector import SVAConnector, frame_position_table
from .features import VideoFeatures
from .segment import segment
from .tower_features import TowerFeatures
from .towers import VisionTower
from .visual_tokens import VisualTokens

Sound = tuple[Tensor, list[int]]  # tokens of every frame, and how many of them are valid


class VideoEncoder(nn.Module):
    """The question-independent half of the model."""

    def __init__(self, config: TDCConfig) -> None:
        super().__init__()
        self.config = config
        grid = config.tower_grid
        self.siglip = (
            VisionTower(config.siglip_config, grid, config.siglip_image_size)
            if config.siglip_config is not None
            else None
        )
        self.dinov2 = (
            VisionTower(config.dinov2_config, grid, config.dinov2_image_size)
            if config.dinov2_config is not None
            else None
        )
        self.beats = (
            BEATs(BEATsConfig.from_dict(config.audio_config)) if config.audio_config else None
        )
        self.connector = SVAConnector(
            config.siglip_hidden_size,
            config.dinov2_hidden_size,
            config.connector_hidden_size,
            config.hidden_size,
            query_grid=config.connector_grid,
            token_grids=(grid, grid),
            depth=config.connector_depth,
            num_heads=config.connector_heads,
            num_query_group=config.connector_query_groups,
            output_grid=config.frame_grid,
        )

    @property
    def audio_width(self) -> int | None:
        """Width of the audio tokens; None for a model without sound."""
        return None if self.beats is None else self.beats.config.encoder_embed_dim

    def forward(self, *, keep_dinov2: bool = False, **media: Any) -> VideoFeatures:
        """Encode a batch of videos and images: :meth:`towers`, then :meth:`connect`."""
        return self.connect(self.towers(**media), keep_dinov2=keep_dinov2)

    def towers(
        self,
        siglip_pixels: Tensor,
        dinov2_pixels: Tensor,
        media_frames: Sequence[int] | Tensor,
        media_sizes: Sequence[Sequence[int]] | Tensor,
        media_is_video: Sequence[bool] | Tensor,
        frame_times: Sequence[float] | Tensor,
        media_seconds: Sequence[int] | Tensor | None = None,
        media_spans: Sequence[Sequence[float]] | Tensor | None = None,
        waveforms: Tensor | None = None,
        waveform_lengths: Sequence[int] | Tensor | None = None,
    ) -> list[TowerFeatures]:
        """What SigLIP, DINOv2 and BEATs make of each medium; no graph where they are frozen.

        Args:
            siglip_pixels: ``[F, 3, 384, 384]`` of all media behind each other: uint8, or floats
                that are normalised already; ``dinov2_pixels``: ``[F, 3, 378, 378]`` likewise.
            media_frames: frames of each medium.
            media_sizes: (width, height) of each medium in pixels.
            media_is_video: False for a single image.
            frame_times: seconds of every frame from its video's start, ``[F]``.
            media_seconds: sampled instants of each video before the frame budget thinned them out
                (the released audio alignment counts in them); default: the last frame's second.
            media_spans: seconds ``[media, 2]`` between which each video was watched, where its
                sound begins and ends; default: from 0 on.
            waveforms: fp32 ``[media, samples]`` at 16 kHz, zero-padded; None without sound.
            waveform_lengths: samples of each medium, 0 = no sound.

        Raises:
            InputError: a model that was saved without vision towers.
        """
        if self.siglip is None or self.dinov2 is None:
            raise InputError(
                "this model was saved without vision towers, so it cannot look at pixels; convert "
                "it again with --siglip and --dinov2, or start from tower features "
                "(VideoEncoder.connect)"
            )
        frames = _ints(media_frames)
        times = _split(_floats(frame_times), frames)
        sounds: list[Sound | None] = [None] * len(frames)
        if waveforms is not None and waveform_lengths is not None and self.beats is not None:
            samples = _ints(waveform_lengths)
            heard = [w[:n] if n else None for w, n in zip(waveforms, samples, strict=True)]
            seconds = None if media_seconds is None else _ints(media_seconds)
            sampled = times  # on the clock of the sound
            if media_spans is not None:
                spans = torch.as_tensor(media_spans, dtype=torch.float64).tolist()
                seconds = [math.ceil(end - start - 0.01) for start, end in spans]
                pairs = zip(times, spans, strict=True)
                sampled = [[time - start for time in row] for row, (start, _) in pairs]
            with stage("BEATs"), graph_if_wanted(self.beats, waveforms):
                sounds = self.encode_audio(heard, sampled, seconds)
        with stage("SigLIP"), graph_if_wanted(self.siglip, siglip_pixels):
            siglip = self.siglip(siglip_pixels).split(frames)
        with stage("DINOv2"), graph_if_wanted(self.dinov2, dinov2_pixels):
            dinov2 = self.dinov2(dinov2_pixels).split(frames)
        sizes = [(int(w), int(h)) for w, h in torch.as_tensor(media_sizes).tolist()]
        is_video = _ints(media_is_video)
        media = []
        for i, sound in enumerate(sounds):
            audio, lengths = sound or (None, None)
            features = siglip[i], dinov2[i], sizes[i], times[i], audio, lengths
            media.append(TowerFeatures(*features, is_video=bool(is_video[i])))
        return media

    def encode_audio(
        self,
        waveforms: Sequence[Tensor | None],
        frame_times: Sequence[Sequence[float]],
        seconds: Sequence[int] | None = None,
    ) -> list[Sound | None]:
        """Per medium ``[L, 50, Ca]`` tokens and valid ones of each frame; None without sound."""
        config = self.config
        if self.beats is None:
            raise InputError("this model has no audio encoder (config.audio_config is None)")
        encoded: list[Sound | None] = []
        for number, (waveform, times) in enumerate(zip(waveforms, frame_times, strict=True)):
            if waveform is None:
                encoded.append(None)
                continue
            placement: dict[str, Any] = {"alignment": "time", "timestamps": times}
            if config.audio_alignment == "release":
                taken = _taken(times, 0 if seconds is None else seconds[number])
                if sum(taken) == len(times):  # else more than one a second, which it cannot say
                    placement = {"alignment": "release", "taken": taken}
            tokens, present = audio_tokens(
                self.beats,
                waveform,
                num_frames=len(times),
                tokens_per_frame=config.audio_tokens_per_frame,
                half_precision=config.audio_half_precision,
                **placement,
            )
            lengths = present.tolist()
            if config.audio_padding == "attend":
                lengths = [config.audio_tokens_per_frame] * len(times)
            encoded.append((tokens, lengths))
        return encoded

    def connect(
        self, media: Sequence[TowerFeatures], *, keep_dinov2: bool = False
    ) -> VideoFeatures:
        """Tower features of a batch of videos and images to what the compressor takes.

        Args:
            media: in the order of the placeholders.
            keep_dinov2: see :meth:`tdc.model.TDCForConditionalGeneration.encode_video`.
        """
        config = self.config
        towers = [x for medium in media for x in (medium.siglip, medium.dinov2)]
        with stage("connector"), graph_if_wanted(self.connector, *towers):
            tokens = self._visual_tokens(media)
        pairs = list(zip(media, tokens, strict=True))
        videos = [medium for medium in media if medium.is_video]
        visual = [t for medium, t in pairs if medium.is_video]
        dinov2 = _join([video.dinov2 for video in videos]) if videos else media[0].dinov2[:0]
        with stage("segmentation"):
            segmentation = segment(
                dinov2.detach(),
                config.num_scenes,
                [0, *accumulate(len(video) for video in videos)],
                config.similarity_threshold,
            )
        nothing = VisualTokens(dinov2.new_zeros(0, 0, config.hidden_size))
        audio, audio_lengths = self._stack_audio(videos)
        return VideoFeatures(
            visual=VisualTokens.join(visual) if visual else nothing,
            visual_lengths=tuple(t.values.shape[1] for t in visual for _ in range(len(t.values))),
            segmentation=segmentation,
            times=tuple(float(time) for video in videos for time in video.frame_times()),
            audio=audio,
            audio_lengths=audio_lengths,
            images=tuple(t.final()[0] for medium, t in pairs if not medium.is_video),
            kinds=tuple("video" if medium.is_video else "image" for medium in media),
            dinov2=dinov2 if keep_dinov2 else None,
        )

    def _visual_tokens(self, media: Sequence[TowerFeatures]) -> list[VisualTokens]:
        """``[L, N, W]`` of each medium. Media of one kind and size are cropped alike, so all of
        them go through the connector in one call."""
        groups: dict[tuple[Any, ...], list[int]] = {}
        for number, medium in enumerate(media):
            groups.setdefault((*medium.size, medium.is_video), []).append(number)
        tokens: dict[int, VisualTokens] = {}
        for members in groups.values():
            frames = [len(media[number]) for number in members]
            made = self._group_tokens([media[number] for number in members])
            for number, values in zip(members, made.values.split(frames), strict=True):
                tokens[number] = replace(made, values=values)
        return [tokens[number] for number in range(len(media))]

    def _group_tokens(self, media: Sequence[TowerFeatures]) -> VisualTokens:
        """``[F, N, W]`` of all frames of media of one kind and size."""
        config, connector = self.config, self.connector
        width, height = media[0].size
        if media[0].is_video and config.video_size_order == "hw":
            width, height = height, width
        dtype = connector.image_newline.dtype
        tokens = connector(
            _join([medium.siglip for medium in media]).to(dtype),
            _join([medium.dinov2 for medium in media]).to(dtype),
            (width, height),
            _chunk_size(config),
        )
        if config.frame_positions is None:
            return tokens
        final = tokens.final()
        number = torch.cat([torch.arange(len(m), device=final.device) for m in media])
        positions = frame_position_table(number, final.shape[-1], config.frame_positions)
        return VisualTokens(final + positions.to(final)[:, None])

    def _stack_audio(
        self, videos: Sequence[TowerFeatures]
    ) -> tuple[Tensor | None, tuple[int, ...]]:
        """All videos' audio tokens ``[F, Na, Ca]``; without sound a video's lengths are 0."""
        heard = [video.audio for video in videos if video.audio is not None]
        if self.beats is None or not heard:
            return None, ()
        pieces: list[Tensor] = []
        lengths: list[int] = []
        for video in videos:
            silence = heard[0].new_zeros(len(video), *heard[0].shape[1:])
            pieces.append(silence if video.audio is None else video.audio)
            lengths += video.heard_lengths()
        return _join(pieces), tuple(lengths)


def graph_if_wanted(module: nn.Module, *inputs: Tensor) -> AbstractContextManager:
    """Without a graph, unless a parameter of the module or an input requires a gradient: frozen
    towers in training then run as they do in inference."""
    wanted = any(x.requires_grad for x in (*inputs, *module.parameters()))
    return torch.set_grad_enabled(torch.is_grad_enabled() and wanted)


def _chunk_size(config: TDCConfig) -> int:
    """Frames that the connector works on at a time: 16 at the paper's widths (50 MB each in fp32),
    up to 64 of a smaller model (forward and backward of 352 frames of 64 tokens of width 64: 276 ms
    against 337 ms, one thread)."""
    size = config.tower_grid**2 * config.connector_hidden_size
    return min(64, max(16, 16 * 576 * 1024 // size))


def _join(parts: Sequence[Tensor]) -> Tensor:
    """Frames of several media behind each other; no copy where ``split`` has just parted them."""
    first, end = parts[0], parts[0].data_ptr()
    for part in parts:
        same = part.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not same or part.data_ptr() != end or not part.is_contiguous() or part.requires_grad:
            return parts[0] if len(parts) == 1 else torch.cat(list(parts))
        end += part.nbytes
    return first.as_strided((sum(map(len, parts)), *first.shape[1:]), first.stride())


def _taken(times: Sequence[float], seconds: int) -> list[int]:
    """0 or 1 for every second of the video, at least ``seconds``: was its frame kept?"""
    kept = {math.floor(time + 0.25) for time in times}  # a player's times are late or early
    return [int(second in kept) for second in range(max(seconds, max(kept) + 1))]


def _split(values: Sequence[float], counts: Sequence[int]) -> list[list[float]]:
    ends = [*accumulate(counts)]
    return [list(values[end - n : end]) for end, n in zip(ends, counts, strict=True)]


def _ints(values: Any) -> list[int]:
    return [int(v) for v in torch.as_tensor(values).flatten().tolist()]


def _floats(values: Any) -> list[float]:
    return [float(v) for v in torch.as_tensor(values, dtype=torch.float64).flatten().tolist()]

# SPDX-License-Identifier: Apache-2.0
"""Frames and sound to ``VideoFeatures``: towers, connector, BEATs, cuts; no question involved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
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
from .towers import VisionTower
from .visual_tokens import VisualTokens


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

    def forward(
        self,
        siglip_pixels: Tensor,
        dinov2_pixels: Tensor,
        media_frames: Sequence[int] | Tensor,
        media_sizes: Sequence[Sequence[int]] | Tensor,
        media_is_video: Sequence[bool] | Tensor,
        frame_times: Sequence[float] | Tensor,
        media_seconds: Sequence[int] | Tensor | None = None,
        waveforms: Tensor | None = None,
        waveform_lengths: Sequence[int] | Tensor | None = None,
        keep_dinov2: bool = False,
    ) -> VideoFeatures:
        """Encode a batch of videos and images.

        Args:
            siglip_pixels: ``[F, 3, 384, 384]`` of all media behind each other: uint8, or floats
                that are normalised already; ``dinov2_pixels``: ``[F, 3, 378, 378]`` likewise.
            media_frames: frames of each medium.
            media_sizes: (width, height) of each medium in pixels.
            media_is_video: False for a single image.
            frame_times: seconds of every frame from its video's start, ``[F]``.
            media_seconds: sampled instants of each video before the frame budget thinned them out
                (the released audio alignment counts in them); default: the last frame's second.
            waveforms: fp32 ``[media, samples]`` at 16 kHz, zero-padded; None without sound.
            waveform_lengths: samples of each medium, 0 = no sound.
        """
        if self.siglip is None or self.dinov2 is None:
            raise InputError(
                "this model was saved without vision towers, so it cannot look at pixels; convert "
                "it again with --siglip and --dinov2, or start from tower features "
                "(encode_features)"
            )
        frames = _ints(media_frames)
        audio = None
        if waveforms is not None and waveform_lengths is not None and self.beats is not None:
            sounds = [
                waveform[:length] if length else None
                for waveform, length in zip(waveforms, _ints(waveform_lengths), strict=True)
            ]
            with stage("BEATs"):
                audio = self.encode_audio(
                    sounds,
                    _split(_floats(frame_times), frames),
                    None if media_seconds is None else _ints(media_seconds),
                )
        with stage("SigLIP"):
            siglip_tokens = self.siglip(siglip_pixels)
        with stage("DINOv2"):
            dinov2_tokens = self.dinov2(dinov2_pixels)
        return self.encode_features(
            siglip_tokens,
            dinov2_tokens,
            frames,
            [tuple(size) for size in torch.as_tensor(media_sizes).tolist()],
            [bool(v) for v in _ints(media_is_video)],
            _floats(frame_times),
            audio,
            keep_dinov2=keep_dinov2,
        )

    def encode_audio(
        self,
        waveforms: Sequence[Tensor | None],
        frame_times: Sequence[Sequence[float]],
        seconds: Sequence[int] | None = None,
    ) -> list[tuple[Tensor, list[int]] | None]:
        """Per medium ``[L, 50, Ca]`` tokens and valid ones of each frame; None without sound."""
        config = self.config
        if self.beats is None:
            raise InputError("this model has no audio encoder (config.audio_config is None)")
        encoded: list[tuple[Tensor, list[int]] | None] = []
        for number, (waveform, times) in enumerate(zip(waveforms, frame_times, strict=True)):
            if waveform is None:
                encoded.append(None)
                continue
            if config.audio_alignment == "release":
                count = seconds[number] if seconds is not None else round(max(times)) + 1
                placement: dict[str, Any] = {"taken": _taken(times, count)}
            else:
                placement = {"timestamps": times}
            tokens, present = audio_tokens(
                self.beats,
                waveform,
                alignment=config.audio_alignment,
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

    def encode_features(
        self,
        siglip: Tensor,
        dinov2: Tensor,
        media_frames: Sequence[int],
        media_sizes: Sequence[Sequence[int]],
        media_is_video: Sequence[bool],
        frame_times: Sequence[float],
        audio: Sequence[tuple[Tensor, list[int]] | None] | None = None,
        *,
        keep_dinov2: bool = False,
    ) -> VideoFeatures:
        """The same from tower outputs.

        Args:
            siglip, dinov2: ``[F, tower_grid**2, C]``.
            audio: per medium what :meth:`encode_audio` returns.
        """
        config = self.config
        with stage("connector"):
            tokens = self._all_frame_tokens(
                siglip, dinov2, media_frames, media_sizes, media_is_video
            )
        videos = [i for i, is_video in enumerate(media_is_video) if is_video]
        rows = [r for i in videos for r in _range(media_frames, i)]
        cu_frames = [0]
        for i in videos:
            cu_frames.append(cu_frames[-1] + media_frames[i])
        visual = [tokens[i] for i in videos]
        nothing = VisualTokens(siglip.new_zeros(0, 0, config.hidden_size))
        video_dinov2 = dinov2 if len(rows) == len(dinov2) else dinov2[rows]
        sound, sound_lengths = self._stack_audio(audio, videos, media_frames)
        with stage("segmentation"):
            segmentation = segment(
                video_dinov2.detach(), config.num_scenes, cu_frames, config.similarity_threshold
            )
        return VideoFeatures(
            visual=VisualTokens.join(visual) if visual else nothing,
            visual_lengths=tuple(t.values.shape[1] for t in visual for _ in t.values),
            segmentation=segmentation,
            times=tuple(float(frame_times[r]) for r in rows),
            audio=sound,
            audio_lengths=sound_lengths,
            images=tuple(
                t.final()[0]
                for t, is_video in zip(tokens, media_is_video, strict=True)
                if not is_video
            ),
            kinds=tuple("video" if is_video else "image" for is_video in media_is_video),
            dinov2=video_dinov2 if keep_dinov2 else None,
        )

    def _all_frame_tokens(
        self,
        siglip: Tensor,
        dinov2: Tensor,
        media_frames: Sequence[int],
        media_sizes: Sequence[Sequence[int]],
        media_is_video: Sequence[bool],
    ) -> list[VisualTokens]:
        """``[L, N, W]`` of each medium. Media of one kind and size are cropped alike, so all
        of them go through the connector in one call."""
        groups: dict[tuple[Any, ...], list[int]] = {}
        for medium, (size, is_video) in enumerate(zip(media_sizes, media_is_video, strict=True)):
            groups.setdefault((*size, is_video), []).append(medium)
        towers = [x.split(list(media_frames)) for x in (siglip, dinov2)]
        tokens: dict[int, VisualTokens] = {}
        for (width, height, is_video), members in groups.items():
            frames = [media_frames[medium] for medium in members]
            if len(groups) == 1:
                pair = [siglip, dinov2]
            elif len(members) == 1:
                pair = [tower[members[0]] for tower in towers]
            else:
                pair = [torch.cat([tower[medium] for medium in members]) for tower in towers]
            size = (width, height)
            made = self._frame_tokens(pair[0], pair[1], frames, size, is_video)
            for medium, values in zip(members, made.values.split(frames), strict=True):
                tokens[medium] = replace(made, values=values)
        return [tokens[medium] for medium in range(len(media_frames))]

    def _frame_tokens(
        self,
        siglip: Tensor,
        dinov2: Tensor,
        frames: Sequence[int],
        size: Sequence[int],
        is_video: bool,
    ) -> VisualTokens:
        """``[F, N, W]`` of media with so many ``frames`` each."""
        config, connector = self.config, self.connector
        width, height = size
        if is_video and config.video_size_order == "hw":
            width, height = height, width
        dtype = connector.image_newline.dtype
        tokens = connector(siglip.to(dtype), dinov2.to(dtype), (width, height), _chunk_size(config))
        if config.frame_positions is None:
            return tokens
        final = tokens.final()
        number = torch.cat([torch.arange(count, device=final.device) for count in frames])
        positions = frame_position_table(number, final.shape[-1], config.frame_positions)
        return VisualTokens(final + positions.to(final)[:, None])

    def _stack_audio(
        self,
        audio: Sequence[tuple[Tensor, list[int]] | None] | None,
        videos: Sequence[int],
        media_frames: Sequence[int],
    ) -> tuple[Tensor | None, tuple[int, ...]]:
        """All videos' audio tokens ``[F, Na, Ca]``; without sound a video's lengths are 0."""
        if audio is None or all(audio[i] is None for i in videos):
            return None, ()
        like = next(pair[0] for pair in audio if pair is not None)
        pieces, lengths = [], []
        for i in videos:
            pair = audio[i]
            if pair is None:
                pieces.append(like.new_zeros(media_frames[i], *like.shape[1:]))
                lengths += [0] * media_frames[i]
            else:
                pieces.append(pair[0])
                lengths += pair[1]
        return (pieces[0] if len(pieces) == 1 else torch.cat(pieces)), tuple(lengths)


def _chunk_size(config: TDCConfig) -> int:
    """Frames that the connector works on at a time: 16 at the paper's widths (50 MB each in fp32),
    up to 64 of a smaller model (forward and backward of 352 frames of 64 tokens of width 64: 276 ms
    against 337 ms, one thread)."""
    size = config.tower_grid**2 * config.connector_hidden_size
    return min(64, max(16, 16 * 576 * 1024 // size))


def _taken(times: Sequence[float], seconds: int) -> list[int]:
    """0 or 1 for every sampled second of the original video: was its frame kept?"""
    taken = [0] * seconds
    for time in times:
        taken[min(round(time), seconds - 1)] = 1
    return taken


def _range(media_frames: Sequence[int], medium: int) -> range:
    first = sum(media_frames[:medium])
    return range(first, first + media_frames[medium])


def _split(values: Sequence[float], counts: Sequence[int]) -> list[list[float]]:
    return [list(values[r.start : r.stop]) for r in (_range(counts, i) for i in range(len(counts)))]


def _ints(values: Any) -> list[int]:
    return [int(v) for v in torch.as_tensor(values).flatten().tolist()]


def _floats(values: Any) -> list[float]:
    return [float(v) for v in torch.as_tensor(values, dtype=torch.float64).flatten().tolist()]

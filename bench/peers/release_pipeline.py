# SPDX-License-Identifier: Apache-2.0
"""A video to the prompt of the language model the way the authors' released code does it, re-stated
in our own words.

Same mathematics, same weights; what differs from ours is how the work is cut up:

- frames are padded, resized and normalised one after the other, and travel as floats;
- the sound goes through BEATs in windows of ten seconds, one at a time;
- the connector takes all frames at once and its last layer is computed for all of them;
- segmentation and Q-Former as in ``release_compressor``: a call per chunk of eight frames;
- one video at a time, and nothing is kept for the next question.

Towers and BEATs themselves are the model's own modules, the towers in slices of 64 frames: what is
inside them is not ours to compare. One square video, a frame a second, none left out; the caller
feeds the language model. The stages are named as ours are, for ``tdc.profiling.measure``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tdc.encoder.beats import BEATs
from tdc.encoder.connector import SVAConnector, SVALayer, WindowKeysValues
from tdc.encoder.towers import VisionTower
from tdc.model import TDCForConditionalGeneration
from tdc.profiling import stage

from . import release_compressor

SLICE = 64  # frames per call of a tower
SAMPLE_RATE, SECONDS = 16_000, 10  # of the sound, and of a window of it
RESERVE = 16  # tokens left free for the answer


def prompt(
    model: TDCForConditionalGeneration,
    frames: np.ndarray,
    waveform: np.ndarray | None,
    input_ids: Tensor,
    question_ids: Tensor,
) -> Tensor:
    """``[1, T, D]``: what the language model reads.

    Args:
        frames: uint8 ``[L, S, S, 3]``, one a second.
        waveform: fp32 ``[n]`` at 16 kHz, or None.
        input_ids: int64 ``[T]`` on the model's device, with one placeholder.
        question_ids: int64 ``[T']``.
    """
    return prompt_of_pixels(model, pixels(model, frames), waveform, input_ids, question_ids)


def prompt_of_pixels(
    model: TDCForConditionalGeneration,
    images: Sequence[Tensor],
    waveform: np.ndarray | None,
    input_ids: Tensor,
    question_ids: Tensor,
) -> Tensor:
    """The same from what :func:`pixels` returned."""
    dinov2, visual, audio = encode(model, images, waveform)
    with stage("segmentation"):
        starts = release_compressor.segment(dinov2, model.config.num_boundaries)
    return assemble(
        model, context(model, visual, audio, starts, input_ids, question_ids), input_ids
    )


@stage("resize frames")
def pixels(model: TDCForConditionalGeneration, frames: np.ndarray) -> list[Tensor]:
    """SigLIP's ``[L, 3, 384, 384]`` and DINOv2's ``[L, 3, 378, 378]``, normalised, in the model's
    dtype on its device."""
    encoder = model.video_encoder
    assert encoder.siglip is not None and encoder.dinov2 is not None
    dtype = encoder.connector.image_newline.dtype
    return [
        torch.stack([preprocess(frame, tower) for frame in frames]).to(model.device, dtype)
        for tower in (encoder.siglip, encoder.dinov2)
    ]


def encode(
    model: TDCForConditionalGeneration, images: Sequence[Tensor], waveform: np.ndarray | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """DINOv2's tokens ``[L, 576, C]``, the frames' ``[L, 156, D]``, BEATs' ``[L, 50, 768]``."""
    encoder = model.video_encoder
    assert encoder.siglip is not None and encoder.dinov2 is not None
    audio = None
    if waveform is not None and encoder.beats is not None:
        with stage("BEATs"):
            audio = sound_tokens(encoder.beats, waveform, len(images[0]))
    with stage("SigLIP"):
        siglip = encoder.siglip(images[0], chunk_size=SLICE)
    with stage("DINOv2"):
        dinov2 = encoder.dinov2(images[1], chunk_size=SLICE)
    with stage("connector"):
        visual = connect(encoder.connector, siglip, dinov2)
    return dinov2, visual, audio


def preprocess(frame: np.ndarray, tower: VisionTower) -> Tensor:
    """uint8 ``[S, S, 3]`` to normalised fp32 ``[3, P, P]``; a square needs no padding."""
    image = Image.fromarray(frame)
    if image.size != (tower.image_size, tower.image_size):
        image = image.resize((tower.image_size, tower.image_size), Image.Resampling.BICUBIC)
    values = np.asarray(image, dtype=np.float32) / 255
    mean, std = (np.array(x, dtype=np.float32) for x in (tower.image_mean, tower.image_std))
    return torch.from_numpy(((values - mean) / std).transpose(2, 0, 1).copy())


def sound_tokens(beats: BEATs, waveform: np.ndarray, seconds: int) -> Tensor:
    """``[seconds, 50, C]``: slices of 50 tokens of every window, shorter ones pooled to 50."""
    sound = torch.from_numpy(waveform).to(beats.patch_embedding.weight.device).half().float()
    rows: list[Tensor] = []
    for k in range(0, min(len(sound) // SAMPLE_RATE, seconds), SECONDS):
        window = sound[k * SAMPLE_RATE : (k + SECONDS) * SAMPLE_RATE]
        tokens = beats(window[None])[0][0]  # 496 of a whole window
        for second in tokens.split(50)[: seconds - k]:
            pooled = F.adaptive_avg_pool1d(second.float().T[None], 50)[0].T
            rows.append(pooled.to(tokens.dtype))
    out = torch.stack(rows[:seconds])
    return F.pad(out, (0, 0, 0, 0, 0, seconds - len(out)))


# ---------------------------------------------------------------- connector


def connect(connector: SVAConnector, siglip: Tensor, dinov2: Tensor) -> Tensor:
    """``[L, 156, D]`` of square frames: every frame through every layer, all at once."""
    grid = connector.query_grid
    projected = []
    for projector, tokens in zip(connector.aux_projectors, (siglip, dinov2), strict=True):
        fc1, fc2, norm = (getattr(projector, name) for name in ("fc1", "fc2", "norm"))
        projected.append(norm(fc2(F.gelu(fc1(tokens)))))
    context = projected[0].mean(1)  # [L, V]
    windows = [_windows(tokens, grid) for tokens in projected]
    groups = []
    for query, layers in zip(connector.query, connector.samplers, strict=True):
        x = query.expand(len(siglip), grid**2, -1)
        for layer in layers:  # type: ignore[attr-defined]
            x = _sva_layer(layer, x, context, windows)
        groups.append(x)
    cells = connector.projector(torch.cat(groups, dim=-1)).unflatten(1, (grid, grid))
    newline = connector.image_newline.expand(len(cells), grid, 1, -1)
    return torch.cat([cells, newline], dim=2).flatten(1, 2)


def _windows(tokens: Tensor, grid: int) -> Tensor:
    """``[L, T, V]`` to ``[L, grid^2, k^2, V]``, row by row."""
    side = math.isqrt(tokens.shape[1])
    k = side // grid
    cells = tokens.view(len(tokens), grid, k, grid, k, -1).transpose(2, 3)
    return cells.reshape(len(tokens), grid**2, k * k, -1)


def _sva_layer(layer: SVALayer, x: Tensor, context: Tensor, windows: Sequence[Tensor]) -> Tensor:
    wide = layer.context(context)[:, None].expand_as(x)
    u = layer.mix(torch.cat([x, wide], dim=-1))
    keys, values = [], []
    towers = cast("Iterable[WindowKeysValues]", layer.towers)
    for tower, tokens in zip(towers, windows, strict=True):
        placed = tokens if tower.position is None else tokens + tower.position
        keys.append(tower.key(tower.key_norm(placed)))
        values.append(tower.value(tower.value_norm(placed)))
    q = layer.query(layer.query_norm(u)).flatten(0, 1)[:, None]  # [L * P, 1, V]
    k, v = (torch.cat(pair, dim=2).flatten(0, 1) for pair in (keys, values))
    q, k, v = (t.unflatten(-1, (layer.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
    attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
    return x + layer.fc2(F.gelu(layer.fc1(layer.norm(u + layer.out(attended)))))


# ---------------------------------------------------------------- prompt


@stage("compressor")
def context(
    model: TDCForConditionalGeneration,
    visual: Tensor,
    audio: Tensor | None,
    starts: list[int],
    input_ids: Tensor,
    question_ids: Tensor,
) -> Tensor:
    """``[N, D]`` context tokens: where they do not fit, the end of every chunk is cut."""
    tokens = release_compressor.compress(model.compressor, visual, starts, question_ids, audio)
    room = model.config.max_context_length - RESERVE - (len(input_ids) - 1)
    if len(tokens) <= room:
        return tokens
    static = visual.shape[1] + (0 if audio is None else audio.shape[1]) + 1
    per_frame = model.compressor.num_context_tokens + 1
    chunk = release_compressor.CHUNK
    lengths = [
        static + (min(first + chunk, end) - first - 1) * per_frame
        for start, end in pairwise([*starts, len(visual)])
        for first in range(start, end, chunk)
    ]
    cut = math.ceil((len(tokens) - room) / len(lengths))
    return torch.cat([piece[:-cut] for piece in tokens.split(lengths)])[:room]


@stage("compressor")
def assemble(model: TDCForConditionalGeneration, tokens: Tensor, input_ids: Tensor) -> Tensor:
    """``[1, T, D]``: embeddings of the text before, the context, embeddings of the text after."""
    place = int((input_ids == model.config.media_token_id).nonzero())
    embed: Any = model.get_input_embeddings()
    parts = [embed(input_ids[:place]), tokens, embed(input_ids[place + 1 :])]
    return torch.cat(parts)[None, : model.config.max_context_length]

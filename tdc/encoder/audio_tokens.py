# SPDX-License-Identifier: Apache-2.0
"""Sound -> a fixed number of BEATs tokens for every video frame (TDC paper section 3.2).

The sound track is encoded in windows of ten seconds. Each frame then gets the tokens of the time
until the next frame, pooled to 50. Two readings of "the tokens of the time":

* ``"time"``: by exact time. BEATs makes 8 tokens every 160 ms, so second 3 of a window is time
  steps 18.75 to 25: steps 18..24 whole. Frames without sound have length 0.
* ``"release"``: as the released code slices: second ``i`` of a window is rows ``50 i .. 50 i + 49``
  (the last one 46 rows), which cuts through time steps; seconds whose frame was dropped are merged
  into the kept frame before. Released checkpoints were trained with this.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError
from .beats import BEATs
from .fbank import SAMPLE_RATE

WINDOW_SECONDS = 10
WINDOW = WINDOW_SECONDS * SAMPLE_RATE  # samples
_TIME_SLACK = 1e-6  # time steps; timestamps are floats


def audio_tokens(
    beats: BEATs,
    waveform: Tensor,
    *,
    alignment: str = "time",
    timestamps: Sequence[float] | None = None,
    end: float | None = None,
    taken: Sequence[int] | Tensor | None = None,
    num_frames: int | None = None,
    tokens_per_frame: int = 50,
    half_precision: bool = False,
    chunk_size: int = 8,
) -> tuple[Tensor, Tensor]:
    """Tokens of the sound that belongs to each frame.

    Args:
        beats: the encoder.
        waveform: ``[n]`` mono at 16 kHz, in -1..1, beginning with the video. Less than a second is
            padded with silence to one second.
        alignment: ``"time"`` or ``"release"``, see the module.
        timestamps: seconds at which the frames are shown, ascending; frame ``j`` gets the sound of
            ``timestamps[j] .. timestamps[j + 1]``. For ``"time"`` only.
        end: end of the last frame in seconds. Default: it lasts as long as the frame before it, a
            single frame as long as the sound; with ``taken`` to the end of that.
        taken: 0 or 1 for every second of the video: whether its frame was kept. Required for
            ``"release"``; ``"time"`` takes it in place of ``timestamps``.
        num_frames: frames that come out; default: the frames given. Fewer entries are padded with
            zeros, more are cut.
        tokens_per_frame: tokens of each frame.
        half_precision: round the waveform to fp16 first, as the released data pipeline does.
        chunk_size: windows encoded at a time. One takes about 40 MB in fp32 at BEATs' usual size.

    Returns:
        ``[num_frames, tokens_per_frame, width]`` on the encoder's device and in its dtype, zeros
        where there is no sound; and int64 lengths ``[num_frames]``, 0 there and
        ``tokens_per_frame`` elsewhere. The released model attends the zeros all the same.

    Raises:
        InputError: a waveform of another shape, an unknown alignment, or no frame times.
    """
    if waveform.dim() != 1 or waveform.numel() == 0:
        raise InputError(f"waveform must be [n] with n > 0 samples, got {list(waveform.shape)}")
    kept = None if taken is None else [bool(value) for value in torch.as_tensor(taken).tolist()]
    parameter = next(beats.parameters())
    sound = waveform.to(parameter.device)
    if half_precision:
        sound = sound.half()
    sound = F.pad(sound.float(), (0, max(0, SAMPLE_RATE - sound.numel())))
    if alignment == "release":
        if kept is None:
            raise InputError('taken is missing: alignment "release" needs it')
        entries = _release_entries(beats, sound, kept, tokens_per_frame, chunk_size)
        count = sum(kept)
    elif alignment == "time":
        duration = waveform.numel() / SAMPLE_RATE
        spans = _frame_spans(timestamps, kept, end, duration)
        entries = _timed_entries(beats, sound, spans, duration, tokens_per_frame, chunk_size)
        count = len(spans)
    else:
        raise InputError(f'alignment must be "time" or "release", got {alignment!r}')
    count = count if num_frames is None else num_frames
    tokens = parameter.new_zeros(count, tokens_per_frame, beats.hidden_size)
    lengths = torch.zeros(count, dtype=torch.int64, device=parameter.device)
    for row, entry in enumerate(entries[:count]):
        if entry is not None:
            tokens[row] = entry
            lengths[row] = tokens_per_frame
    return tokens, lengths


def pool_tokens(tokens: Tensor, count: int) -> Tensor:
    """Adaptive average pooling ``[n, C] -> [count, C]`` in fp32; ``n < count`` repeats rows."""
    pooled = F.adaptive_avg_pool1d(tokens.float().T[None], count)[0].T
    return pooled.to(tokens.dtype)


def _frame_spans(
    timestamps: Sequence[float] | None,
    kept: list[bool] | None,
    end: float | None,
    duration: float,
) -> list[tuple[float, float]]:
    """Start and end in seconds of every frame."""
    if timestamps is None and kept is None:
        raise InputError("timestamps is missing: give it or taken")
    if timestamps is None:
        assert kept is not None
        starts = [float(second) for second, flag in enumerate(kept) if flag]
        end = float(len(kept)) if end is None else end
    else:
        starts = [float(start) for start in timestamps]
        if any(later < earlier for earlier, later in pairwise(starts)):
            raise InputError("timestamps must be ascending")
    if not starts:
        return []
    if end is None:
        end = 2 * starts[-1] - starts[-2] if len(starts) > 1 else duration
    return [*pairwise(starts), (starts[-1], max(end, starts[-1]))]


def _encode_windows(beats: BEATs, windows: Sequence[Tensor], chunk_size: int) -> list[Tensor]:
    """Tokens ``[n_tok, width]`` of each window; equally long ones share a call."""
    encoded: list[Tensor] = []
    start = 0
    while start < len(windows):
        stop = start + 1
        length = windows[start].numel()
        while stop < min(len(windows), start + chunk_size) and windows[stop].numel() == length:
            stop += 1
        tokens, _ = beats(torch.stack(list(windows[start:stop])))
        encoded.extend(tokens.unbind())
        start = stop
    return encoded


def _timed_entries(
    beats: BEATs,
    sound: Tensor,
    spans: Sequence[tuple[float, float]],
    duration: float,
    tokens_per_frame: int,
    chunk_size: int,
) -> list[Tensor | None]:
    """One pooled entry per frame, None where the sound is over."""
    # A rest of less than a second goes with the window before: alone it may give no token at all.
    count = max(1, sound.numel() // WINDOW + (sound.numel() % WINDOW >= SAMPLE_RATE))
    needed = sorted({w for span in spans for w in _windows_of(span, count, duration)})
    pieces = [sound[w * WINDOW : (w + 1) * WINDOW if w + 1 < count else None] for w in needed]
    encoded = dict(zip(needed, _encode_windows(beats, pieces, chunk_size), strict=True))
    entries: list[Tensor | None] = []
    for start, stop in spans:
        rows = []
        for w in _windows_of((start, stop), count, duration):
            local_stop = stop - w * WINDOW_SECONDS if w + 1 == count else WINDOW_SECONDS
            local_stop = min(local_stop, stop - w * WINDOW_SECONDS)
            rows.append(_steps(beats, encoded[w], start - w * WINDOW_SECONDS, local_stop))
        entries.append(pool_tokens(torch.cat(rows), tokens_per_frame) if rows else None)
    return entries


def _windows_of(span: tuple[float, float], count: int, duration: float) -> range:
    """Windows whose sound falls into a span; none for a span after the sound."""
    start, stop = max(span[0], 0.0), min(span[1], duration)
    if start >= duration or stop <= 0.0:
        return range(0)
    first = min(int(start // WINDOW_SECONDS), count - 1)
    last = min(math.ceil(stop / WINDOW_SECONDS - _TIME_SLACK), count)
    return range(first, max(last, first + 1))


def _steps(beats: BEATs, tokens: Tensor, start: float, stop: float) -> Tensor:
    """Rows of the time steps that a span of seconds touches, at least one."""
    per_step, seconds = beats.config.tokens_per_step, beats.config.seconds_per_step
    steps = tokens.shape[0] // per_step
    # The last 80 ms of a window belong to no step: they fall to the last one.
    first = min(max(math.floor(start / seconds + _TIME_SLACK), 0), steps - 1)
    last = min(max(math.ceil(stop / seconds - _TIME_SLACK), first + 1), steps)
    return tokens[first * per_step : last * per_step]


def _release_entries(
    beats: BEATs, sound: Tensor, kept: list[bool], tokens_per_frame: int, chunk_size: int
) -> list[Tensor | None]:
    """The released slicing and merging, step by step (see the module)."""
    seconds = min(sound.numel() // SAMPLE_RATE, len(kept))  # sound after the video is left out
    starts = range(0, seconds, WINDOW_SECONDS)
    pieces = [sound[k * SAMPLE_RATE : k * SAMPLE_RATE + WINDOW] for k in starts]
    encoded = _encode_windows(beats, pieces, chunk_size)
    entries: list[Tensor | None] = []
    buffer: list[Tensor] = []  # seconds since the last kept one; lives on across windows
    for k, tokens in zip(starts, encoded, strict=True):
        for i, flag in enumerate(kept[k : k + WINDOW_SECONDS]):
            second = tokens[i * tokens_per_frame : (i + 1) * tokens_per_frame]
            if second.shape[0] == 0:
                continue
            if flag and buffer:
                entries.append(pool_tokens(torch.cat(buffer), tokens_per_frame))
                buffer = []
            buffer.append(pool_tokens(second, tokens_per_frame))
    if buffer:
        entries.append(pool_tokens(torch.cat(buffer), tokens_per_frame))
    return entries

# SPDX-License-Identifier: Apache-2.0
"""Log-mel filter bank features as Kaldi computes them, in PyTorch on any device.

The settings are those BEATs was trained with: 16 kHz, frames of 25 ms every 10 ms that lie wholly
inside the signal, 128 mel filters from 20 Hz to 8 kHz, Povey window, no dither.
"""

from __future__ import annotations

import functools
import warnings

import numpy as np
import torch
from torch import Tensor
from transformers.audio_utils import mel_filter_bank

SAMPLE_RATE = 16_000  # Hz
FRAME_LENGTH = 400  # samples: 25 ms
FRAME_SHIFT = 160  # samples: 10 ms
FFT_LENGTH = 512  # the next power of two
NUM_MEL_BINS = 128
PREEMPHASIS = 0.97
INT16_SCALE = 2.0**15  # Kaldi expects 16-bit sample values
LOG_FLOOR = torch.finfo(torch.float32).eps


def kaldi_fbank(waveform: Tensor) -> Tensor:
    """Log-mel energies.

    Args:
        waveform: ``[..., n]`` mono at 16 kHz, in -1..1.

    Returns:
        fp32 ``[..., frames, 128]`` with ``frames = 1 + (n - 400) // 160`` (none below 400 samples).
    """
    # In fp64: near-silent bins are tiny differences of large samples, and BEATs amplifies their
    # rounding error (1.5e-4 at its output in fp32, half of it in fp64). Autocast leaves fp64 alone.
    samples = waveform.double() * INT16_SCALE
    if samples.shape[-1] < FRAME_LENGTH:
        return waveform.new_zeros((*waveform.shape[:-1], 0, NUM_MEL_BINS), dtype=torch.float32)
    frames = samples.unfold(-1, FRAME_LENGTH, FRAME_SHIFT)  # [..., frames, 400]
    frames = frames - frames.mean(dim=-1, keepdim=True)
    previous = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
    window = torch.from_numpy(_povey_window()).to(frames.device)
    frames = (frames - PREEMPHASIS * previous) * window
    power = torch.fft.rfft(frames, n=FFT_LENGTH).abs().square()  # [..., frames, 257]
    filters = torch.from_numpy(_mel_filters()).to(power.device)
    return (power @ filters).clamp_min(LOG_FLOOR).log().float()


# Cached as arrays: a tensor would keep the mode (inference, meta device, fake) of the first call.
@functools.cache
def _povey_window() -> np.ndarray:
    return np.hanning(FRAME_LENGTH) ** 0.85  # [400]


@functools.cache
def _mel_filters() -> np.ndarray:
    with warnings.catch_warnings():
        # The lowest filters are narrower than an FFT bin and stay empty; BEATs was trained so.
        warnings.filterwarnings("ignore", message="At least one mel filter")
        return mel_filter_bank(
            num_frequency_bins=FFT_LENGTH // 2 + 1,
            num_mel_filters=NUM_MEL_BINS,
            min_frequency=20.0,
            max_frequency=SAMPLE_RATE / 2,
            sampling_rate=SAMPLE_RATE,
            mel_scale="kaldi",
            triangularize_in_mel_space=True,
        )  # [257, 128]

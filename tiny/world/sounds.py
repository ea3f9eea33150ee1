# SPDX-License-Identifier: Apache-2.0
"""The six sounds, one second at a time, and the waveform of a clip."""

from __future__ import annotations

import functools
from random import Random

import numpy as np

from tdc.encoder.fbank import SAMPLE_RATE

from .clips import Clip

# Silent edges of a second: BEATs' steps of 160 ms do not align with seconds.
BEGIN, END = 0.06, 0.92
_FADE = 0.01  # seconds; avoids clicks
_PITCHES = (0.9, 1.0, 1.1)  # one per clip
_LEVEL = 0.15  # root mean square of a sound


def render_sound(clip: Clip) -> np.ndarray:
    """Waveform fp32 [n], mono at 16 kHz, one second per sampled frame; silence is exactly 0."""
    rng = Random(f"{clip.name}/sound")
    pitch, gain = rng.choice(_PITCHES), rng.uniform(0.7, 1.0)
    wave = np.zeros(clip.num_frames * SAMPLE_RATE, dtype=np.float32)
    for second, sound in enumerate(clip.sounds):
        if sound is not None:
            part = wave[second * SAMPLE_RATE : (second + 1) * SAMPLE_RATE]
            np.multiply(one_second(sound, pitch), gain, out=part)
    return wave


@functools.lru_cache(maxsize=64)
def one_second(sound: str, pitch: float = 1.0) -> np.ndarray:
    """fp32 [16000]: the sound between two silent edges, root mean square 0.15 where it sounds."""
    count = round((END - BEGIN) * SAMPLE_RATE)
    body = _SYNTHESES[sound](np.arange(count) / SAMPLE_RATE, pitch)
    fade = round(_FADE * SAMPLE_RATE)
    ramp = np.linspace(0, 1, fade)
    body = body * (_LEVEL / np.sqrt((body**2).mean()))
    body[:fade] *= ramp
    body[-fade:] *= ramp[::-1]
    wave = np.zeros(SAMPLE_RATE, dtype=np.float32)
    first = round(BEGIN * SAMPLE_RATE)
    wave[first : first + count] = np.clip(body, -1, 1)
    wave.flags.writeable = False  # cached: all callers share it
    return wave


def _sine(hertz: float, t: np.ndarray) -> np.ndarray:
    return np.sin(2 * np.pi * hertz * t)


def _beep(t: np.ndarray, pitch: float) -> np.ndarray:
    return _sine(1000 * pitch, t) * (t % 0.25 < 0.15)


def _siren(t: np.ndarray, pitch: float) -> np.ndarray:
    """Up and down between 600 and 2400 Hz, twice."""
    hertz = pitch * (1500 - 900 * np.cos(2 * np.pi * t / (END - BEGIN) * 2))
    return np.sin(2 * np.pi * np.cumsum(hertz) / SAMPLE_RATE)


def _noise(t: np.ndarray, pitch: float) -> np.ndarray:
    return np.random.default_rng(round(100 * pitch)).standard_normal(len(t)).clip(-3, 3)


def _buzz(t: np.ndarray, pitch: float) -> np.ndarray:
    """A low square wave: odd harmonics of 110 Hz up to 2 kHz."""
    return sum((_sine(110 * pitch * k, t) / k for k in range(1, 18, 2)), np.zeros(len(t)))


def _clicks(t: np.ndarray, pitch: float) -> np.ndarray:
    """Eleven clicks a second, each a burst at 5 kHz that decays within 8 ms."""
    since = t % (0.09 / pitch)
    return _sine(5000 * pitch, since) * np.exp(-since / 0.003)


def _chord(t: np.ndarray, pitch: float) -> np.ndarray:
    return sum((_sine(330 * pitch * r, t) for r in (1, 1.25, 1.5, 2)), np.zeros(len(t)))


_SYNTHESES = {
    "beep": _beep,
    "siren": _siren,
    "noise": _noise,
    "buzz": _buzz,
    "clicks": _clicks,
    "chord": _chord,
}

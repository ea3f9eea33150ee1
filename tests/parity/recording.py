# SPDX-License-Identifier: Apache-2.0
"""Recordings of the authors' code: what was recorded, and which frames and sound went into it.

``cases.json`` describes every case in words. What the words leave open is found by comparing the
candidates with what was recorded of the input itself: frame similarities, the first projection's
tokens, and audio tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from tdc.media.sampling import sample_indices

SAMPLE_RATE = 16_000
WINDOW_SECONDS, FULL_WINDOW = 10, 496  # BEATs tokens of ten seconds
PAD_IDS = (151643, 128002)  # Qwen2, Llama 3
IMAGE_ROW = 3  # the row of single images whose note names none
_SAME_INPUT = 1e-3  # similarities and tokens of another frame differ by far more


@dataclass(frozen=True, eq=False)
class Recording:
    """One recorded case."""

    folder: Path
    name: str
    case: dict[str, Any]
    arrays: dict[str, np.ndarray]

    @property
    def note(self) -> str:
        return self.case.get("note", "")

    @property
    def llama(self) -> bool:
        return "llama" in (self.name + self.note).lower()

    @property
    def config(self) -> dict[str, Any]:
        base = read_json(self.folder, "config_llama.json" if self.llama else "config_qwen.json")
        return {**base, "audio_input": False, **self.case.get("config_overrides", {})}

    @property
    def is_video(self) -> bool:
        return "split_sizes" in self.arrays

    @property
    def kept(self) -> list[int]:
        """Frames of each video after sub-sampling."""
        return self.arrays["split_sizes"].tolist()

    def state(self) -> dict[str, Tensor]:
        return read_state(self.folder, self.case.get("state", "state_qwen.safetensors"))


def load(folder: Path, name: str) -> Recording:
    case = read_json(folder, "cases.json")["cases"][name]
    return Recording(folder, name, case, read_arrays(folder, f"{name}.npz"))


@cache
def read_json(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


@cache
def read_arrays(folder: Path, name: str) -> dict[str, np.ndarray]:
    with np.load(folder / name) as archive:
        return {key: archive[key] for key in archive.files}


@cache
def read_state(folder: Path, name: str) -> dict[str, Tensor]:
    """Weights from the safetensors file, or from an npz of the same name (which packs tighter)."""
    if (folder / name).exists():
        return load_file(folder / name)
    arrays = read_arrays(folder, str(Path(name).with_suffix(".npz")))
    return {key: torch.from_numpy(value) for key, value in arrays.items()}


@cache
def vocabulary(folder: Path) -> dict[str, int]:
    words = (folder / "bert_vocab.txt").read_text().splitlines()
    return {word: i for i, word in enumerate(words)}


def features(recording: Recording) -> tuple[Tensor, Tensor]:
    """SigLIP and DINOv2 tokens of all frames of the case's geometry, fp32."""
    name = "feats_P40.npz" if recording.case["geometry"] == "P" else "feats_T260.npz"
    return _features(recording.folder, name)


@cache
def _features(folder: Path, name: str) -> tuple[Tensor, Tensor]:
    arrays = read_arrays(folder, name)
    siglip, dino = (torch.from_numpy(arrays[k].astype(np.float32)) for k in ("siglip", "dino"))
    return siglip, dino


# --- frames ------------------------------------------------------------------------------------


def frame_rows(recording: Recording) -> list[list[int]]:
    """Rows of the feature file that each medium was made of, before sub-sampling.

    Raises:
        RuntimeError: neither the note nor the recorded arrays say which.
    """
    if not recording.is_video:
        return _image_rows(recording)
    arrays, rows, first = recording.arrays, [], 0
    for number, kept in enumerate(recording.kept):
        chosen = arrays.get(f"frame_sel_{number}", arrays.get("frame_sel"))
        candidates = (
            iter([chosen.flatten().tolist()])
            if chosen is not None
            else _candidates(recording, number, kept)
        )
        found = next((c for c in candidates if _fits(recording, number, first, c)), None)
        if found is None:
            raise RuntimeError(
                f"{recording.name}: no rows fit video {number}; note: {recording.note}"
            )
        rows.append(found)
        first += kept
    return rows


def _spans(note: str) -> list[list[int]]:
    """Rows written as ``feats_X[a:b]``, ``feats_X[:b]``, ``[a:b]`` or ``feats_X[a]``."""
    found = re.findall(r"(?<![\w.])(?:feats_\w+)?\[(\d*)(:?)(\d*)\]", note)
    return [
        list(range(int(a or 0), int(b))) if colon else [int(a)]
        for a, colon, b in found
        if (b if colon else a)
    ]


def _candidates(recording: Recording, number: int, kept: int) -> Iterator[list[int]]:
    note, total = recording.note, len(features(recording)[1])
    spans = _spans(note)
    yield from spans[number : number + 1]
    yield from spans
    for pattern in (r"\bL ?= ?(\d+)", r"\b(\d+) ?-> ?\d+", r"\b(\d+)[- ]frames?\b"):
        for length in re.findall(pattern, note):
            yield list(range(int(length)))
    yield list(range(kept))
    for length in (40, 260, *range(kept + 1, total + 1)):  # sub-sampled from the first rows
        yield list(range(min(length, total)))
    for first in range(1, total - kept + 1):
        yield list(range(first, first + kept))


def _fits(recording: Recording, number: int, first: int, rows: list[int]) -> bool:
    """Do these rows, thinned to the recorded count, give what was recorded of this video?"""
    kept, (siglip, dino) = recording.kept[number], features(recording)
    if len(rows) < kept or max(rows) >= len(dino):
        return False
    rows = [rows[i] for i in sample_indices(len(rows), kept)]
    recorded = _similarities(recording, number)
    if recorded is not None:
        flat = dino[rows].flatten(1)
        ours = F.cosine_similarity(flat[1:], flat[:-1])
        return bool((ours - recorded).abs().max() < _SAME_INPUT)
    prints = _projections(recording)
    return all(
        _projection_error(recording, siglip[rows[frame - first]], token) < _SAME_INPUT
        for frame, token in prints.items()
        if first <= frame < first + kept
    )


def _similarities(recording: Recording, number: int) -> Tensor | None:
    """The video's part of the recorded similarities; short videos have none."""
    most = recording.config.get("max_num_segments", 24) + 1
    counts = [n - 1 if n > most else 0 for n in recording.kept]
    recorded = recording.arrays.get("cos_sim")
    if recorded is None or sum(counts) != len(recorded) or not counts[number]:
        return None
    start = sum(counts[:number])
    return torch.from_numpy(recorded[start : start + counts[number]])


def _projections(recording: Recording) -> dict[int, Tensor]:
    """Packed frame number -> recorded SigLIP projection (every 5th token), where recorded."""
    arrays = recording.arrays
    if "aux0_proj_tok5" not in arrays:
        return {}
    tokens = torch.from_numpy(arrays["aux0_proj_tok5"])
    return dict(zip(arrays["kept_frames"].tolist(), tokens, strict=True))


def _projection_error(recording: Recording, siglip: Tensor, recorded: Tensor) -> float:
    state, prefix = recording.state(), "model.mm_projector_aux_0."
    w = [(state[f"{prefix}{i}.weight"], state[f"{prefix}{i}.bias"]) for i in (0, 2, 3)]
    tokens = F.linear(F.gelu(F.linear(siglip[::5], *w[0])), *w[1])
    return float((F.layer_norm(tokens, tokens.shape[-1:], *w[2]) - recorded).abs().max())


def _image_rows(recording: Recording) -> list[list[int]]:
    count = len(recording.case["image_sizes"])
    rows = [row for span in _spans(recording.note) for row in span] or [IMAGE_ROW]
    rows += [rows[-1]] * (count - len(rows))
    siglip = features(recording)[0]
    for number, token in _projections(recording).items():
        if _projection_error(recording, siglip[rows[number]], token) >= _SAME_INPUT:
            errors = [_projection_error(recording, frame, token) for frame in siglip]
            rows[number] = int(np.argmin(errors))
    return [[row] for row in rows[:count]]


def original_seconds(recording: Recording, number: int, length: int, keep: list[int]) -> list[int]:
    """0 or 1 for every second of the original video: did its frame survive?"""
    arrays = recording.arrays
    indices = arrays.get(f"video_indices_{number}", arrays.get("video_indices"))
    if indices is not None and indices.ndim == 2:
        indices = indices[number]
    positions = list(range(length)) if indices is None else np.flatnonzero(indices).tolist()
    taken = [0] * (length if indices is None else len(indices))
    for i in keep:
        taken[positions[i]] = 1
    return taken


def text_length(ids: np.ndarray) -> int:
    """The released budget counts ids up to the first pad id."""
    pads = np.flatnonzero(np.isin(ids, PAD_IDS))
    return int(pads[0]) if len(pads) else len(ids)


# --- sound -------------------------------------------------------------------------------------

Encode = Callable[[Tensor, int], Tensor]  # waveform, number of frames -> tokens [L, 50, 768]


def sound_tokens(
    recording: Recording, frames: list[int], lengths: list[int], encode: Encode
) -> list[Tensor | None]:
    """Audio tokens of each video, None for a video without sound.

    Args:
        frames: kept frames of each video; ``lengths``: its seconds.
        encode: the audio encoder of the model under test.
    """
    recorded = recording.arrays.get("audio_frames_cols96")
    if recorded is None:
        return [None] * len(frames)
    tokens: list[Tensor | None] = []
    rest = torch.from_numpy(recorded)
    for on, count, length in zip(
        _with_sound(recording, frames, len(recorded)), frames, lengths, strict=True
    ):
        if not on:
            tokens.append(None)
            continue
        ordinal = sum(t is not None for t in tokens)
        tokens.append(_best(recording, ordinal, count, length, rest[:count], encode))
        rest = rest[count:]
    return tokens


def _with_sound(recording: Recording, frames: list[int], recorded: int) -> tuple[bool, ...]:
    """Which videos have sound: those whose frames add up to the recorded audio frames."""
    choices = [
        on
        for on in product((True, False), repeat=len(frames))
        if sum(n for n, yes in zip(frames, on, strict=True) if yes) == recorded
    ]
    if not choices:
        raise RuntimeError(f"{recording.name}: {recorded} audio frames fit no videos of {frames}")
    # Of equally long videos the note must say which; the first is the usual one.
    later = re.search(r"\b(second|last)\b", recording.note) and "first" not in recording.note
    return choices[-1] if later else choices[0]


def _best(
    recording: Recording, ordinal: int, frames: int, length: int, recorded: Tensor, encode: Encode
) -> Tensor:
    """Tokens of the first stretch of sound that gives the recorded ones, else of the closest."""
    best, smallest = None, float("inf")
    for wave in _waveforms(recording, ordinal, length):
        tokens = encode(wave, frames)
        error = float((tokens[..., ::96] - recorded).abs().max())
        if error < smallest:
            best, smallest = tokens, error
        if smallest < _SAME_INPUT:
            break
    assert best is not None
    return best


def _waveforms(recording: Recording, ordinal: int, length: int) -> Iterator[Tensor]:
    wave = torch.from_numpy(read_arrays(recording.folder, "wav.npz")["wav"].astype(np.float32))
    wave = wave.flatten()
    seconds = wave.numel() / SAMPLE_RATE

    def samples(text: str, default: float) -> int:
        value = float(text) if text else default
        return round(value * SAMPLE_RATE) if value <= seconds + 1 else int(value)

    spans = re.findall(r"wav\[\s*(\d*\.?\d*)\s*:\s*(\d*\.?\d*)", recording.note)
    cuts = [wave[samples(a, 0.0) : samples(b, seconds)] for a, b in spans]
    yield from cuts[ordinal : ordinal + 1]
    yield from cuts
    for text in re.findall(r"\b(\d+(?:\.\d+)?) ?(?:s|sec|seconds)\b", recording.note):
        yield wave[: max(1, samples(text, 0.0))]
    # Without a word about it: as much as the recorded windows hold, all of it, or the video's.
    windows = recording.arrays.get("beats_out_lens", np.array([FULL_WINDOW])).tolist()
    yield wave[: round(_seconds(windows) * SAMPLE_RATE)]
    yield wave
    yield wave[: length * SAMPLE_RATE]


def _seconds(windows: list[int]) -> float:
    """Sound that gives windows of so many tokens: 8 tokens for every 160 ms, 25 ms to begin."""
    last = 10.0 if windows[-1] == FULL_WINDOW else windows[-1] / 8 * 0.16 + 0.05
    return WINDOW_SECONDS * (len(windows) - 1) + last

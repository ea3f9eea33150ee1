# SPDX-License-Identifier: Apache-2.0
"""Compare the model with recordings of the authors' code.

    python tests/parity/run.py DIR

runs every ``cNN_*.npz`` in DIR (recordings plus ``cases.json``, weights and tower features in the
form of ``tests/parity/data``) and prints the largest error per case. Exit code 1 if one exceeds its
tolerance: 1e-5 for embeddings (2e-4 with audio), 2e-5 for logits (2e-4 with audio), and exact
equality for boundaries, Q-Former batches, sequence lengths, masks, positions and labels.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import BertTokenizer

from tdc.audio_tokens import audio_tokens
from tdc.beats import BEATsConfig
from tdc.budget import frame_budget, sample_indices
from tdc.features import VideoFeatures
from tdc.model import TDCForConditionalGeneration
from tdc.release import our_names, release_config

TOLERANCE = {"plain": 1e-5, "audio": 2e-4}
LOGIT_TOLERANCE = {"plain": 2e-5, "audio": 2e-4}
SAMPLE_RATE = 16_000


@dataclass
class Result:
    """Errors of one case: largest absolute difference per recorded array, and what differs exactly."""

    name: str
    audio: bool
    errors: dict[str, float] = field(default_factory=dict)
    mismatches: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        kind = "audio" if self.audio else "plain"
        return not self.mismatches and all(
            error <= (LOGIT_TOLERANCE if name in ("logits", "loss") else TOLERANCE)[kind]
            for name, error in self.errors.items()
        )

    def compare(self, name: str, ours: torch.Tensor, recorded: np.ndarray) -> None:
        expected = torch.from_numpy(np.asarray(recorded))
        if tuple(ours.shape) != tuple(expected.shape):
            self.mismatches.append(f"{name}: {list(ours.shape)} != {list(expected.shape)}")
        elif expected.is_floating_point():
            self.errors[name] = (
                float((ours.double() - expected.double()).abs().max()) if ours.numel() else 0.0
            )
        elif not torch.equal(ours.long(), expected.long()):
            self.mismatches.append(f"{name}: {int((ours.long() != expected.long()).sum())} differ")


@dataclass
class Recording:
    """One recorded case and what it was recorded from."""

    folder: Path
    name: str
    case: dict[str, Any]
    arrays: dict[str, np.ndarray]

    @property
    def llama(self) -> bool:
        return "llama" in self.name

    @property
    def config(self) -> dict[str, Any]:
        base = read_json(self.folder, "config_llama.json" if self.llama else "config_qwen.json")
        return {**base, "audio_input": False, **self.case["config_overrides"]}


@cache
def read_json(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


@cache
def read_arrays(folder: Path, name: str) -> dict[str, np.ndarray]:
    with np.load(folder / name) as archive:
        return {key: archive[key] for key in archive.files}


@cache
def release_state(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "state_qwen.safetensors")


def build_model(recording: Recording) -> TDCForConditionalGeneration:
    """The model that the authors' weights and configuration give, BEATs included."""
    folder, release = recording.folder, recording.config
    state = dict(release_state(folder))
    if recording.llama:
        state = {k: v for k, v in state.items() if not re.search(r"self_attn\.[qkv]_proj\.bias", k)}
    queries = release["context_token_num"]
    state["model.query_tokens"] = state["model.query_tokens"][:, :queries]
    parts = {}
    if release["audio_input"]:
        parts["audio_config"] = vars(
            BEATsConfig.from_dict(read_json(folder, "beats768_config.json"))
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    config = release_config(release, shapes, read_json(folder, "bert_config.json"), **parts)
    model = TDCForConditionalGeneration(config).eval()
    taken, _ = our_names(config, state)
    ours = {taken[k]: v for k, v in state.items() if k in taken}
    ours = {k: v.reshape(model.state_dict()[k].shape) for k, v in ours.items()}
    left = model.load_state_dict(ours, strict=False)
    unexpected = [k for k in left.missing_keys if "beats" not in k] + left.unexpected_keys
    if unexpected:
        raise RuntimeError(f"{recording.name}: weights do not match: {unexpected[:5]}")
    if model.video_encoder.beats is not None:
        beats = read_arrays(folder, "beats768_state.npz")
        model.video_encoder.beats.load_state_dict(
            {k: torch.from_numpy(v) for k, v in beats.items()}, strict=False
        )
    return model


def frame_rows(recording: Recording) -> list[list[int]]:
    """Rows of the feature file for each video, read from the case's note.

    A note names rows as ``feats_X[a:b]``, ``feats_X[frame_sel]`` or ``L=n``; one that names none
    is checked against the recorded number of frames and similarities.
    """
    note, arrays = recording.case["note"], recording.arrays
    if "frame_sel" in arrays:
        return [arrays["frame_sel"].tolist()]
    spans = re.findall(r"(?<![\w.])(?:feats_\w+)?\[(\d+)(?::(\d+))?\]", note)
    if spans:
        return [list(range(int(a), int(b) if b else int(a) + 1)) for a, b in spans]
    if found := re.search(r"\bL ?= ?(\d+)", note):
        return [list(range(int(found[1])))]
    if found := re.search(r"\b(\d+) ?-> ?\d+", note):
        return [list(range(int(found[1])))]
    if "split_sizes" not in arrays:
        return [[3]]  # single images are row 3 throughout
    return [_matching_rows(recording)]


def _matching_rows(recording: Recording) -> list[int]:
    """The first L rows, for the L whose frames give the recorded similarities."""
    dino = features(recording)[1]
    kept = int(recording.arrays["split_sizes"][0])
    recorded = torch.from_numpy(recording.arrays["cos_sim"])
    for length in (40, kept, 260, *range(kept, len(dino) + 1)):
        rows = sample_indices(length, kept)
        if length > len(dino) or len(rows) != kept:
            continue
        flat = dino[rows].flatten(1).double()
        cosine = torch.cosine_similarity(flat[1:], flat[:-1], dim=1)
        if cosine.shape == recorded.shape and (cosine - recorded).abs().max() < 1e-4:
            return list(range(length))
    raise RuntimeError(f"{recording.name}: the note does not say which frames: {recording.case}")


def features(recording: Recording) -> tuple[torch.Tensor, torch.Tensor]:
    name = "feats_P40.npz" if recording.case["geometry"] == "P" else "feats_T260.npz"
    arrays = read_arrays(recording.folder, name)
    return tuple(torch.from_numpy(arrays[k].astype(np.float32)) for k in ("siglip", "dino"))  # type: ignore[return-value]


def encode(recording: Recording, model: TDCForConditionalGeneration) -> VideoFeatures:
    """Sub-sample as the release does, then encode tower features (and sound)."""
    siglip, dino = features(recording)
    config, arrays = model.config, recording.arrays
    is_video = "split_sizes" in arrays
    ids, mask = arrays["input_ids"], arrays.get("attention_mask")
    groups, taken = [], []
    for number, rows in enumerate(frame_rows(recording)):
        keep = list(range(len(rows)))
        if is_video:
            keep = sample_indices(len(rows), frame_budget(config, _text_length(ids[number], mask)))
        groups.append([rows[i] for i in keep])
        taken.append(_taken(arrays.get("video_indices"), len(rows), keep))
    flat = [row for group in groups for row in group]
    sizes = [(w, h) for w, h in recording.case["image_sizes"]]
    if is_video and config.video_size_order == "hw":
        # The recordings list sizes as the authors passed them; encode_features swaps videos' once.
        sizes = [(h, w) for w, h in sizes]
    return model.video_encoder.encode_features(
        siglip[flat],
        dino[flat],
        [len(group) for group in groups],
        sizes,
        [is_video] * len(groups),
        list(map(float, flat)),
        _sound(recording, model, groups, taken) if is_video else None,
        keep_dinov2=True,
    )


def _text_length(ids: np.ndarray, mask: np.ndarray | None) -> int:
    """The released budget counts ids up to the first pad id, 151643 or 128002."""
    pads = np.flatnonzero(np.isin(ids, (151643, 128002)))
    return int(pads[0]) if len(pads) else len(ids)


def _taken(indices: np.ndarray | None, length: int, keep: list[int]) -> list[int]:
    """0 or 1 for every original second."""
    positions = range(length) if indices is None else np.flatnonzero(indices).tolist()
    taken = [0] * (length if indices is None else len(indices))
    for i in keep:
        taken[positions[i]] = 1
    return taken


def _sound(
    recording: Recording,
    model: TDCForConditionalGeneration,
    groups: list[list[int]],
    taken: list[list[int]],
) -> list[tuple[torch.Tensor, list[int]] | None] | None:
    beats = model.video_encoder.beats
    if beats is None or "audio_frames_cols96" not in recording.arrays:
        return None
    # Recordings of batches carry sound for the first videos only as far as audio frames go, and the
    # authors' loop uses the last video's seconds for all of them.
    have = recording.arrays["audio_frames_cols96"].shape[0]
    waves = _waveforms(recording)
    sound: list[tuple[torch.Tensor, list[int]] | None] = []
    for number, group in enumerate(groups):
        if have < sum(len(g) for g in groups[: number + 1]):
            sound.append(None)
            continue
        tokens, _ = audio_tokens(
            beats,
            waves[min(number, len(waves) - 1)],
            alignment="release",
            taken=taken[-1],
            num_frames=len(group),
            half_precision=True,
        )
        sound.append((tokens, [tokens.shape[1]] * len(group)))
    return sound


def _waveforms(recording: Recording) -> list[torch.Tensor]:
    wave = torch.from_numpy(read_arrays(recording.folder, "wav.npz")["wav"].astype(np.float32))
    wave = wave.flatten()
    spans = re.findall(r"wav\[(\d*\.?\d*)\s*:\s*(\d*\.?\d*)", recording.case["note"])
    if spans:
        rate = SAMPLE_RATE
        return [wave[int(float(a or 0) * rate) : int(float(b or 1e6) * rate)] for a, b in spans]
    # No note: as many seconds as the recorded windows of 10 s (496 tokens, 48 to 50 per second).
    windows = recording.arrays["beats_out_lens"].tolist()
    seconds = sum(10 if n == 496 else n / 49.6 for n in windows)
    return [
        wave
        if len(windows) * 10 >= 40 and windows[-1] == 496
        else wave[: int(seconds * SAMPLE_RATE)]
    ]


def question_ids(recording: Recording) -> tuple[torch.Tensor, torch.Tensor]:
    """Q-Former ids of the prompts with the recorded vocabulary, padded on the right."""
    tokenizer = BertTokenizer(vocab=_vocabulary(recording.folder))
    rows = [
        tokenizer(p, truncation=True, max_length=256).input_ids for p in recording.case["prompts"]
    ]
    length = max(map(len, rows))
    ids = torch.tensor([r + [0] * (length - len(r)) for r in rows])
    mask = torch.tensor([[1] * len(r) + [0] * (length - len(r)) for r in rows])
    return ids, mask


@cache
def _vocabulary(folder: Path) -> dict[str, int]:
    words = (folder / "bert_vocab.txt").read_text().splitlines()
    return {word: i for i, word in enumerate(words)}


@torch.no_grad()
def run_case(folder: Path, name: str) -> Result:
    """Run one recording and compare everything it holds."""
    recording = Recording(
        folder,
        name,
        read_json(folder, "cases.json")["cases"][name],
        read_arrays(folder, f"{name}.npz"),
    )
    arrays = recording.arrays
    result = Result(name, bool(recording.config["audio_input"]))
    model = build_model(recording)
    encoded = encode(recording, model)
    _compare_boundaries(result, encoded, arrays)
    ids, mask = question_ids(recording)
    if "qf_input_ids" in arrays:
        last = ids[-1][mask[-1].bool()]
        result.compare("qf_input_ids", last, arrays["qf_input_ids"])
    as_tensor = {
        k: torch.from_numpy(v) for k, v in arrays.items() if v.dtype.kind in "iub" and v.ndim
    }
    prompt = model.prepare_prompt(
        as_tensor["input_ids"],
        as_tensor.get("attention_mask"),
        as_tensor.get("labels"),
        features=encoded,
        question_ids=ids,
        question_mask=mask,
    )
    if "inputs_embeds" in arrays:
        result.compare("inputs_embeds", prompt.inputs_embeds, arrays["inputs_embeds"])
    if "inputs_embeds_col4" in arrays:
        result.compare(
            "inputs_embeds", prompt.inputs_embeds[..., ::4], arrays["inputs_embeds_col4"]
        )
    for key, ours in (
        ("out_attention_mask", prompt.attention_mask),
        ("out_position_ids", prompt.position_ids),
        ("out_labels", prompt.labels),
    ):
        if key in arrays and ours is not None:
            result.compare(key, ours, arrays[key])
    if "logits" in arrays and not result.mismatches:
        _compare_logits(result, model, prompt, arrays)
    return result


def _compare_boundaries(
    result: Result, encoded: VideoFeatures, arrays: dict[str, np.ndarray]
) -> None:
    cuts = encoded.segmentation
    if "cos_sim" in arrays and len(arrays["cos_sim"]):
        ours = torch.cat([cuts.video_similarity(b) for b in range(encoded.num_videos)])
        if ours.shape[0] == len(arrays["cos_sim"]):
            result.compare("cos_sim", ours, arrays["cos_sim"])
    for b in range(encoded.num_videos):
        if f"seg_idx_{b}" in arrays:
            length = cuts.cu_frames[b + 1] - cuts.cu_frames[b]
            recorded = arrays[f"seg_idx_{b}"] + 1
            recorded = recorded[recorded < length]  # short videos also list their end
            starts = torch.tensor(cuts.scene_starts(b)[1:], dtype=torch.long)
            result.compare(f"boundaries_{b}", starts, recorded)


def _compare_logits(result, model, prompt, arrays) -> None:  # type: ignore[no-untyped-def]
    output = model(
        inputs_embeds=prompt.inputs_embeds,
        attention_mask=prompt.attention_mask,
        # Given only where the authors' code had them: they change what padding rows hold.
        position_ids=prompt.position_ids if "out_position_ids" in arrays else None,
        labels=prompt.labels,
    )
    places = torch.from_numpy(arrays["logit_positions"])
    result.compare("logits", output.logits[:, places], arrays["logits"])
    if "loss" in arrays:
        result.compare("loss", output.loss, arrays["loss"])


def main(folder: str) -> int:
    path = Path(folder)
    names = sorted(p.stem for p in path.glob("c[0-9]*_*.npz"))
    if not names:
        print(f"no recordings (cNN_*.npz) in {folder}", file=sys.stderr)
        return 2
    failed = 0
    print(f"{'case':30} {'embeddings':>11} {'logits':>11}  result")
    for name in names:
        try:
            result = run_case(path, name)
        except Exception as error:  # one broken case must not hide the others
            print(f"{name:30} {'':>11} {'':>11}  ERROR {type(error).__name__}: {error}")
            failed += 1
            continue
        cells = [
            f"{result.errors[k]:11.2e}" if k in result.errors else f"{'-':>11}"
            for k in ("inputs_embeds", "logits")
        ]
        verdict = "ok" if result.passed else "FAILED " + "; ".join(result.mismatches)
        print(f"{name:30} {' '.join(cells)}  {verdict}")
        failed += not result.passed
    print(f"{len(names) - failed} of {len(names)} recordings reproduced")
    return 1 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    sys.exit(main(sys.argv[1]))

# SPDX-License-Identifier: Apache-2.0
"""Compare the model with recordings of the authors' code.

    python tests/parity/run.py DIR

runs every ``cNN_*.npz`` in DIR (recordings plus ``cases.json``, weights and tower features in the
form of ``tests/parity/data``) and prints the largest error per case. Exit code 1 if one exceeds its
tolerance: 1e-5 for embeddings (2e-4 with audio), 2e-5 for logits (2e-4 with audio), and exact
equality for frame counts, boundaries, sequence lengths, masks, positions and labels.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import BertTokenizer

# A plain `python tests/parity/run.py` tests the checkout it lies in, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from recording import (
    Recording,
    features,
    frame_rows,
    load,
    original_seconds,
    read_arrays,
    read_json,
    sound_tokens,
    text_length,
    vocabulary,
)

from tdc.checkpoints.release_names import our_names, release_config
from tdc.encoder.audio_tokens import audio_tokens
from tdc.encoder.beats import BEATsConfig
from tdc.encoder.features import VideoFeatures
from tdc.encoder.tower_features import TowerFeatures
from tdc.media.sampling import sample_indices
from tdc.model import TDCForConditionalGeneration
from tdc.processor.budget import frame_budget
from tdc.prompt import Prompt

TOLERANCE = {"plain": 1e-5, "audio": 2e-4}
LOGIT_TOLERANCE = {"plain": 2e-5, "audio": 2e-4}
AUDIO_TOLERANCE = 1e-3  # BEATs' own tokens, which LayerNorm and projection shrink afterwards


@dataclass
class Result:
    """Largest absolute difference per recorded array of one case, and what differs exactly."""

    name: str
    audio: bool
    errors: dict[str, float] = field(default_factory=dict)
    mismatches: list[str] = field(default_factory=list)

    def tolerance(self, name: str) -> float:
        if name == "audio_frames":
            return AUDIO_TOLERANCE
        kind = "audio" if self.audio else "plain"
        return (LOGIT_TOLERANCE if name in ("logits", "loss") else TOLERANCE)[kind]

    @property
    def failures(self) -> list[str]:
        """Everything that is wrong, in words; empty for a reproduced recording."""
        above = [
            f"{name} off by {error:.2e}, at most {self.tolerance(name):.0e} allowed"
            for name, error in self.errors.items()
            if not error <= self.tolerance(name)  # NaN is a failure too
        ]
        return self.mismatches + above

    def compare(self, name: str, ours: Tensor, recorded: np.ndarray | Tensor) -> None:
        expected = torch.as_tensor(recorded)
        if tuple(ours.shape) != tuple(expected.shape):
            self.mismatches.append(f"{name}: {list(ours.shape)} != {list(expected.shape)}")
        elif expected.is_floating_point():
            difference = (ours.double() - expected.double()).abs()
            self.errors[name] = float(difference.max()) if ours.numel() else 0.0
        elif not torch.equal(ours.long(), expected.long()):
            self.mismatches.append(f"{name}: {int((ours.long() != expected.long()).sum())} differ")


def build_model(recording: Recording) -> TDCForConditionalGeneration:
    """The model that the authors' weights and configuration give, BEATs included."""
    folder, release = recording.folder, recording.config
    state = dict(recording.state())
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
    own = model.state_dict()
    ours = {taken[k]: v.reshape(own[taken[k]].shape) for k, v in state.items() if k in taken}
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


def encode(recording: Recording, model: TDCForConditionalGeneration) -> VideoFeatures:
    """Sub-sample as the release does, then encode tower features (and sound)."""
    siglip, dino = features(recording)
    config, is_video = model.config, recording.is_video
    ids = recording.arrays["input_ids"]
    rows, keep = frame_rows(recording), []
    for number, group in enumerate(rows):
        budget = frame_budget(config, text_length(ids[number])) if is_video else 1
        keep.append(sample_indices(len(group), budget))
    sizes = [(w, h) for w, h in recording.case["image_sizes"]]
    if is_video and config.video_size_order == "hw":
        # The recordings list sizes as the authors passed them; the connector swaps videos' once.
        sizes = [(h, w) for w, h in sizes]
    sound = _sound(recording, model, rows, keep)
    # A prompt without placeholder consumes its medium all the same, and leaves it out.
    used = [i for i in range(len(rows)) if not _is_text_only(recording, i, len(rows))]
    media = []
    for i in used:
        kept = [rows[i][k] for k in keep[i]]
        media.append(
            TowerFeatures(siglip[kept], dino[kept], sizes[i], kept, sound[i], is_video=is_video)
        )
    return model.video_encoder.connect(media, keep_dinov2=True)


def _is_text_only(recording: Recording, medium: int, media: int) -> bool:
    ids = recording.arrays["input_ids"]
    return len(ids) == media and not (ids[medium] == -200).any()


def _sound(
    recording: Recording,
    model: TDCForConditionalGeneration,
    rows: list[list[int]],
    keep: list[list[int]],
) -> list[Tensor | None]:
    beats = model.video_encoder.beats
    if beats is None or not recording.is_video:
        return [None] * len(rows)
    # The authors' loop leaves the last video's seconds behind and uses them for every video.
    last = len(rows) - 1
    taken = original_seconds(recording, last, len(rows[last]), keep[last])

    def tokens_of(wave: Tensor, frames: int) -> Tensor:
        return audio_tokens(
            beats,
            wave,
            alignment="release",
            taken=taken,
            num_frames=frames,
            half_precision=True,
        )[0]

    return sound_tokens(recording, [len(k) for k in keep], [len(r) for r in rows], tokens_of)


def question_ids(recording: Recording) -> tuple[Tensor, Tensor]:
    """Q-Former ids of the prompts with the recorded vocabulary, padded on the right."""
    tokenizer = BertTokenizer(vocab=vocabulary(recording.folder))
    rows = [
        tokenizer(p, truncation=True, max_length=256).input_ids for p in recording.case["prompts"]
    ]
    length = max(map(len, rows))
    ids = torch.tensor([r + [0] * (length - len(r)) for r in rows])
    mask = torch.tensor([[1] * len(r) + [0] * (length - len(r)) for r in rows])
    return ids, mask


@torch.no_grad()
def run_case(folder: Path, name: str) -> Result:
    """Run one recording and compare everything it holds."""
    recording = load(folder, name)
    arrays = recording.arrays
    result = Result(name, bool(recording.config["audio_input"]))
    model = build_model(recording)
    encoded = encode(recording, model)
    _compare_features(result, encoded, recording)
    ids, mask = question_ids(recording)
    if "qf_input_ids" in arrays:
        result.compare("qf_input_ids", ids[-1][mask[-1].bool()], arrays["qf_input_ids"])
    given = {k: torch.from_numpy(v) for k, v in arrays.items() if v.dtype.kind in "iub" and v.ndim}
    prompt = model.prepare_prompt(
        given["input_ids"],
        given.get("attention_mask"),
        given.get("labels"),
        features=encoded,
        question_ids=ids,
        question_mask=mask,
    )
    _compare_prompt(result, prompt, arrays)
    if "logits" in arrays and not result.mismatches:
        _compare_logits(result, model, prompt, arrays)
    return result


def _compare_features(result: Result, encoded: VideoFeatures, recording: Recording) -> None:
    arrays, cuts = recording.arrays, encoded.segmentation
    if recording.is_video and encoded.num_videos == len(recording.kept):
        result.compare("split_sizes", torch.tensor(cuts.cu_frames).diff(), arrays["split_sizes"])
    most = recording.config["max_num_segments"] + 1  # up to here every frame is a scene
    parts = [cuts.video_similarity(b) for b in range(encoded.num_videos)]
    ours = torch.cat([p for p in parts if len(p) >= most] or [torch.zeros(0)])
    if len(arrays.get("cos_sim", ())) and encoded.num_videos == len(recording.kept):
        result.compare("cos_sim", ours, arrays["cos_sim"])
    for b in range(encoded.num_videos):
        if f"seg_idx_{b}" in arrays:
            length = cuts.cu_frames[b + 1] - cuts.cu_frames[b]
            recorded = arrays[f"seg_idx_{b}"] + 1
            recorded = recorded[recorded < length]  # short videos also list their end
            starts = torch.tensor(cuts.scene_starts(b)[1:], dtype=torch.long)
            result.compare(f"boundaries_{b}", starts, recorded)
    if "audio_frames_cols96" in arrays and encoded.audio is not None:
        heard = [i for i, n in enumerate(encoded.audio_lengths) if n]
        result.compare(
            "audio_frames", encoded.audio[heard][..., ::96], arrays["audio_frames_cols96"]
        )


def _compare_prompt(result: Result, prompt: Prompt, arrays: dict[str, np.ndarray]) -> None:
    embeds = prompt.inputs_embeds
    if "inputs_embeds" in arrays:
        result.compare("inputs_embeds", embeds, arrays["inputs_embeds"])
    if "inputs_embeds_col4" in arrays:
        result.compare("inputs_embeds", embeds[..., ::4], arrays["inputs_embeds_col4"])
    for key, ours in (
        ("out_attention_mask", prompt.attention_mask),
        ("out_position_ids", prompt.position_ids),
        ("out_labels", prompt.labels),
    ):
        if key in arrays and ours is not None:
            result.compare(key, ours, arrays[key])


def _compare_logits(
    result: Result,
    model: TDCForConditionalGeneration,
    prompt: Prompt,
    arrays: dict[str, np.ndarray],
) -> None:
    output = model(
        inputs_embeds=prompt.inputs_embeds,
        attention_mask=prompt.attention_mask,
        # Given only where the authors' code had them: they change what padding rows hold.
        position_ids=prompt.position_ids if "out_position_ids" in arrays else None,
        labels=prompt.labels,
    )
    places = torch.from_numpy(arrays["logit_positions"])
    # Padding on the left sees nothing: its rows are what softmax makes of an empty set.
    defined = prompt.attention_mask.cumsum(1)[:, places] > 0
    recorded = torch.from_numpy(arrays["logits"])
    result.compare("logits", output.logits[:, places][defined], recorded[defined])
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
        verdict = "FAILED " + "; ".join(result.failures) if result.failures else "ok"
        print(f"{name:30} {' '.join(cells)}  {verdict}", flush=True)
        failed += bool(result.failures)
    print(f"{len(names) - failed} of {len(names)} recordings reproduced")
    return 1 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    sys.exit(main(sys.argv[1]))

# SPDX-License-Identifier: Apache-2.0
"""``tdc convert``: a checkpoint in the authors' layout becomes one of ours.

Tensors are read and written one at a time: the peak memory is one output shard (2 GB by default),
whatever the size of the model. The output folder appears only when everything succeeded.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, BertTokenizer

from ..config import TDCConfig
from ..encoder.beats import BEATs
from ..encoder.towers import VisionTower
from ..errors import InputError, listed
from ..files import check_new_folder, whole_folder
from ..model import TDCForConditionalGeneration
from ..processor.processor import new_processor
from .folder import (
    SHARD_BYTES,
    Checkpoint,
    Shapes,
    ShardWriter,
    check_depth,
    check_files,
    one_line,
    read_json,
)
from .release_names import our_names, release_config

logger = logging.getLogger(__name__)


@dataclass
class Report:
    """The fate of every tensor of the release.

    Attributes:
        taken: ``{released name: our name}``.
        ignored: ``{released name: reason}``.
        added: our tensors that came from other files, ``{name: file}``.
        out_dir: the folder written.
    """

    taken: dict[str, str]
    ignored: dict[str, str]
    added: dict[str, str] = field(default_factory=dict)
    out_dir: str = ""


def convert_release(
    release_dir: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    *,
    bert: str | os.PathLike[str] | None = None,
    siglip: str | os.PathLike[str] | None = None,
    dinov2: str | os.PathLike[str] | None = None,
    beats: str | os.PathLike[str] | None = None,
    audio: bool = True,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Convert a released checkpoint.

    Args:
        release_dir: folder with the authors' ``config.json``, weights and tokenizer.
        out_dir: folder to create.
        bert: folder (or hub name) of the Q-Former's BERT, for its vocabulary and number of heads;
            default: ``bert-base-uncased`` inside the release, if it is there.
        siglip, dinov2: folder or hub name of each tower, which the release does not contain;
            without them the result starts from tower features instead of pixels.
        beats: Microsoft's BEATs ``.pt`` file; needed where the release was trained with audio.
        audio: False converts a release with audio into a model without.
        progress: called as ``progress(done, total)`` after every tensor.

    Returns:
        What was taken, ignored and added.

    Raises:
        InputError: unknown, missing or wrongly shaped tensors (with the list), or missing files.
    """
    source, out = Checkpoint(release_dir), Path(out_dir)
    check_new_folder(out)
    with one_line(f"cannot convert {release_dir}"):
        outside = {"siglip": siglip, "dinov2": dinov2, "beats": beats}
        return _convert(source, out, bert, audio, shard_bytes, progress, **outside)


def _convert(
    source: Checkpoint,
    out: Path,
    bert: Any,
    audio: bool,
    shard_bytes: int,
    progress: Callable[[int, int], None] | None,
    siglip: Any,
    dinov2: Any,
    beats: Any,
) -> Report:
    release = source.config()
    check_depth(release, len(source.shapes), source.folder / "config.json")
    bert_dir = _bert_folder(source.folder, bert)
    parts, encoder = _parts(release, siglip, dinov2, beats, audio)
    bert_config = read_json(Path(bert_dir) / "config.json") if _is_folder(bert_dir) else None
    check_files(Path(bert_dir))
    config = release_config(release, source.shapes, bert_config, **parts)
    with torch.device("meta"):
        model = TDCForConditionalGeneration(config)
    taken, ignored = our_names(config, source.shapes)
    expected = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    elsewhere = _elsewhere(siglip, dinov2, encoder, config)
    _check(config, source.shapes, taken, ignored, expected, tuple(elsewhere))
    report = Report(taken, ignored, out_dir=str(out))
    with whole_folder(out) as work:
        dtype = next(iter(source.tensors(dict(list(taken.items())[:1]))))[1].dtype
        config.dtype = dtype
        writer = ShardWriter(work, shard_bytes, len(taken), progress)
        for name, tensor in source.tensors(taken):
            _check_finite(name, tensor, source.folder)
            writer.add(taken[name], tensor.reshape(expected[taken[name]]))
        for prefix, (origin, load) in elsewhere.items():
            for name, tensor in load(dtype).items():
                if prefix + name in expected:
                    _check_finite(name, tensor, origin)
                    writer.add(prefix + name, tensor.to(dtype))
                    report.added[prefix + name] = origin
        writer.close()
        config.architectures = ["TDCForConditionalGeneration"]
        config.save_pretrained(work)
        model.generation_config.save_pretrained(work)
        _save_processor(source.folder, bert_dir, config, work)
    return report


def _check_finite(name: str, tensor: Tensor, origin: str | os.PathLike[str]) -> None:
    if not tensor.isfinite().all():
        raise InputError(f"{name} in {origin} is not finite; copy or download it again")


def _check(
    config: TDCConfig,
    shapes: Shapes,
    taken: Mapping[str, str],
    ignored: Mapping[str, str],
    expected: Shapes,
    elsewhere: tuple[str, ...],
) -> None:
    """Every tensor is accounted for, on both sides, with the right shape."""
    unknown = sorted(set(shapes) - set(taken) - set(ignored))
    if unknown:
        raise InputError(f"the checkpoint has {len(unknown)} unknown tensors: {listed(unknown)}")
    have = set(taken.values())
    missing = sorted(
        name
        for name in expected
        if name not in have and not name.startswith(elsewhere) and not _tied(name, config)
    )
    if missing:
        raise InputError(f"the checkpoint lacks {len(missing)} tensors: {listed(missing)}")
    wrong = [
        f"{theirs} is {list(shapes[theirs])}, expected {list(expected[ours])}"
        for theirs, ours in taken.items()
        if _squeeze(shapes[theirs]) != _squeeze(expected[ours])
    ]
    if wrong:
        raise InputError(f"{len(wrong)} tensors have the wrong shape: {listed(wrong)}")


def _tied(name: str, config: TDCConfig) -> bool:
    return config.tie_word_embeddings and name == "language_model.lm_head.weight"


def _squeeze(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without leading ones: the released query tokens are [1, K, Dq]."""
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape


def _parts(
    release: Mapping[str, Any], siglip: Any, dinov2: Any, beats: Any, audio: bool
) -> tuple[dict[str, Any], BEATs | None]:
    """Configurations of the parts that live in files of their own; BEATs is loaded (90 M)."""
    parts: dict[str, Any] = {}
    if siglip is not None:
        parts["siglip_config"] = vision_config(siglip)
    if dinov2 is not None:
        parts["dinov2_config"] = vision_config(dinov2)
    if not (release.get("audio_input", False) and audio):
        return parts, None
    if beats is None:
        raise InputError(
            "this release hears (audio_input), but BEATs is not part of it; give Microsoft's file "
            "with --beats, or convert without sound with --no-audio"
        )
    encoder = BEATs.from_checkpoint(beats)
    parts["audio_config"] = vars(encoder.config)
    return parts, encoder


def vision_config(name_or_path: str | os.PathLike[str]) -> Any:
    """Vision configuration of a tower's folder or hub name."""
    file = Path(name_or_path) / "config.json"
    if file.is_file():
        check_depth(read_json(file), len(Checkpoint(name_or_path).shapes), file)
    with one_line(f"cannot read the tower {name_or_path}"):
        config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)
    return getattr(config, "vision_config", config)


def _elsewhere(
    siglip: Any, dinov2: Any, encoder: BEATs | None, config: TDCConfig
) -> dict[str, tuple[str, Callable[[torch.dtype], Mapping[str, Tensor]]]]:
    """Prefix of our tensors -> (file, loader) for the parts outside the release."""
    parts: dict[str, tuple[str, Callable[[torch.dtype], Mapping[str, Tensor]]]] = {}
    for name, path in (("siglip", siglip), ("dinov2", dinov2)):
        if path is not None:

            def load(dtype: torch.dtype, path: Any = path) -> Mapping[str, Tensor]:
                tower = VisionTower.from_pretrained(path, token_grid=config.tower_grid, dtype=dtype)
                return tower.state_dict()

            parts[f"video_encoder.{name}."] = (str(path), load)
    if encoder is not None:
        parts["video_encoder.beats."] = ("--beats", lambda dtype: encoder.to(dtype).state_dict())
    return parts


def _bert_folder(release_dir: Path, bert: Any) -> str | os.PathLike[str]:
    if bert is not None:
        return bert
    for folder in (
        release_dir / "bert-base-uncased",
        release_dir / "checkpoints/bert-base-uncased",
    ):
        if folder.is_dir():
            return folder
    raise InputError(
        "the Q-Former's BERT vocabulary is not part of a release; give the folder of "
        "bert-base-uncased with --bert"
    )


def _is_folder(path: str | os.PathLike[str]) -> bool:
    return Path(path).is_dir() and (Path(path) / "config.json").exists()


def _save_processor(release_dir: Path, bert_dir: Any, config: TDCConfig, out: Path) -> None:
    with one_line(f"cannot read the tokenizer in {release_dir}"):
        tokenizer = AutoTokenizer.from_pretrained(release_dir, trust_remote_code=False)
    with one_line(f"cannot read the BERT vocabulary in {bert_dir}"):
        bert_tokenizer = BertTokenizer.from_pretrained(bert_dir)
    new_processor(tokenizer, bert_tokenizer, config, f"{bert_dir} (--bert)").save_pretrained(out)

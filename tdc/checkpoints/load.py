# SPDX-License-Identifier: Apache-2.0
"""Model and processor for the command: from a folder, or the tiny ones of the package.

``from_pretrained`` initialises tensors that a checkpoint lacks and merely warns; the answer of such
a model looks like any other. Here a missing, unexpected or wrongly shaped tensor is an error.
"""

from __future__ import annotations

import logging
import os
import re
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, Dinov2Config, Dinov2Model

from ..config import TDCConfig
from ..encoder.towers import VisionTower
from ..errors import InputError, listed
from ..model import TDCForConditionalGeneration
from ..processor.processor import TDCProcessor
from .folder import Checkpoint, check_depth, one_line, read_json

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TINY = Path(__file__).parents[1] / "assets" / "tiny"  # docs/tiny.md
ABOUT_TINY = "the tiny TDC that comes with the package; it knows drawn clips and their words alone"


@dataclass(frozen=True)
class Loaded:
    """A model ready to run; ``note`` is one line that says which."""

    model: TDCForConditionalGeneration
    processor: TDCProcessor
    note: str
    tiny: bool = False  # the one of the package, taken where no folder is named


def load_model(
    model_dir: str | os.PathLike[str] | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> Loaded:
    """Model and processor in eval mode.

    Args:
        model_dir: folder written by ``tdc convert`` or ``save_pretrained``; None: the tiny TDC of
            the package, which was trained on drawn clips (``docs/tiny.md``).
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``; None: the GPUs if there are any (a model is
            spread over several by ``device_map="auto"``), else the CPU.
        dtype: ``"fp32"``, ``"bf16"``, ``"fp16"``; None: as saved on GPUs, fp32 on the CPU.

    Raises:
        InputError: no TDC model in the folder, a damaged one, or a device that is not there.
    """
    place = pick_device(device)
    folder = TINY if model_dir is None else Path(model_dir)
    config = read_config(folder)
    spread = device is None and place.type == "cuda" and torch.cuda.device_count() > 1
    options: dict[str, Any] = {"device_map": "auto"} if spread else {}
    options["dtype"] = _dtype(dtype, "fp32" if place.type == "cpu" else None) or "auto"
    _check_size(folder, config)
    kind: Any = TDCForConditionalGeneration  # transformers' annotation lacks the loading info
    with _one_line(folder):
        model, found = kind.from_pretrained(
            folder,
            config=config,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported in `found`, all of them at once
            **options,
        )
    _refuse(folder, found)
    with _one_line(folder):
        processor = TDCProcessor.from_pretrained(folder)
    model = model.eval() if spread else model.eval().to(place)
    _check_finite(folder, model)
    note = ABOUT_TINY if model_dir is None else _describe(folder, model)
    return Loaded(model, processor, note, tiny=model_dir is None)


def load_dinov2(
    model_dir: str | os.PathLike[str] | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> tuple[VisionTower, TDCConfig]:
    """The DINOv2 tower alone, which is all that segmentation needs: 2 GB of a 7B model's 18.

    Arguments and errors as for :func:`load_model`.
    """
    place = pick_device(device)
    folder = TINY if model_dir is None else Path(model_dir)
    prefix = "video_encoder.dinov2.model."
    config = read_config(folder)
    if config.dinov2_config is None:
        raise InputError(
            f"the model in {folder} was saved without its DINOv2 tower, which finds the scenes; "
            "convert it again with --dinov2"
        )
    checkpoint = Checkpoint(folder)
    names = [name for name in checkpoint.shapes if name.startswith(prefix)]
    state = dict(checkpoint.tensors({name: name for name in names}))
    model, found = _dinov2(
        folder,
        # Through transformers, because what it saves has older names than its modules.
        None,
        config=config.dinov2_config,
        state_dict={name.removeprefix(prefix): tensor for name, tensor in state.items()},
        dtype=_dtype(dtype, "fp32" if place.type == "cpu" else None) or "auto",
    )
    _refuse(folder, found, prefix)
    return _tower(model, config.tower_grid, config.dinov2_image_size).to(place), config


def load_plain_dinov2(
    name: str | os.PathLike[str], device: str | None = None, dtype: str | None = None
) -> VisionTower:
    """The tower of a DINOv2 on its own, as the paper uses it: 27 x 27 patches, 24 x 24 tokens.

    Args:
        name: folder that transformers' ``Dinov2Model`` or one of its heads was saved to (the head
            is left out), or a name on the Hugging Face hub.
        device, dtype: as for :func:`load_model`.

    Raises:
        InputError: no such model, one of another type or a damaged one, or no such device.
    """
    place = pick_device(device)
    config = _dinov2_config(name)
    default = "fp32" if place.type == "cpu" else None
    model, found = _dinov2(name, name, config=config, dtype=_dtype(dtype, default) or "auto")
    _refuse(name, found | {"unexpected_keys": ()})  # of a head
    return _tower(model).to(place)


def _dinov2_config(name: str | os.PathLike[str]) -> Dinov2Config:
    folder = Path(name)
    if folder.is_dir():
        kind = _model_type(folder, "a DINOv2 as transformers saves it")
    else:
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(name)):
            raise InputError(f"no such folder: {name}; expected one with a DINOv2, or a hub name")
        try:
            kind = AutoConfig.from_pretrained(name).model_type
        except (OSError, ValueError) as error:
            raise InputError(
                f"no such folder: {name}, nor can a model of this name be had from the hub "
                f"({type(error).__name__}); expected a folder, or a hub name and a network"
            ) from error
    if kind != "dinov2":
        hint = "; a TDC model goes with --model" if kind == "tdc" else ""
        raise InputError(f"{name} holds a model of type {kind!r}; expected 'dinov2'{hint}")
    with _one_line(name):
        return Dinov2Config.from_pretrained(name)


def _dinov2(
    name: str | os.PathLike[str], source: str | os.PathLike[str] | None, **options: Any
) -> tuple[Dinov2Model, dict[str, Any]]:
    """The model, and what transformers found wrong with its tensors."""
    kind: Any = Dinov2Model
    with _one_line(name):
        loaded: tuple[Dinov2Model, dict[str, Any]] = kind.from_pretrained(
            source, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    return loaded


def _tower(model: Dinov2Model, grid: int = 24, image_size: int | None = None) -> VisionTower:
    with torch.device("meta"):
        tower = VisionTower(model.config, grid, image_size)
    tower.model = model
    return tower.eval()


def pick_device(name: str | None = None) -> torch.device:
    """The device of this name, or the best there is.

    Raises:
        InputError: no such device here.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device {name}: expected cpu, cuda or cuda:<number>") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device {name}: expected cpu, cuda or cuda:<number>")
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise InputError(f"--device {name}: PyTorch sees {count or 'no'} CUDA device(s) here")
    return device


def read_config(folder: Path) -> TDCConfig:
    """The configuration in a model folder.

    Raises:
        InputError: no such folder, or one of another model.
    """
    if not folder.is_dir():
        raise InputError(f"no such folder: {folder}; expected a model written by tdc convert")
    kind = _model_type(folder, "a folder written by tdc convert or save_pretrained")
    if kind in ("cambrian_qwen", "cambrian_llama"):
        raise InputError(
            f"{folder} holds a checkpoint in the authors' layout; convert it first: "
            f"tdc convert {folder} OUT_DIR"
        )
    if kind != "tdc":
        raise InputError(f"{folder} holds a model of type {kind!r}; expected 'tdc'")
    # Reads the headers: no weights, or a file that was cut off, is said by name.
    weights, file = Checkpoint(folder), folder / "config.json"
    check_depth(read_json(file), len(weights.shapes), file)
    with _one_line(folder):
        return TDCConfig.from_pretrained(folder)


def _model_type(folder: Path, expected: str) -> str | None:
    if not (folder / "config.json").is_file():
        what = "DINOv2" if "DINOv2" in expected else "TDC model"
        raise InputError(f"{folder} is no {what}: it holds no config.json; expected {expected}")
    kind: str | None = read_json(folder / "config.json").get("model_type")
    return kind


def _dtype(name: str | None, default: str | None) -> torch.dtype | None:
    chosen = name or default
    return None if chosen is None else DTYPES[chosen]


def _refuse(folder: str | os.PathLike[str], found: dict[str, Any], prefix: str = "") -> None:
    """One line with everything that transformers found wrong with a checkpoint's tensors."""
    wrong = [f"{k} is {list(s)}, expected {list(e)}" for k, s, e in found["mismatched_keys"]]
    faults = [
        f"{what} {len(names)}: {listed([prefix + name for name in sorted(names)])}"
        for what, names in (
            ("missing", found["missing_keys"]),
            ("unexpected", found["unexpected_keys"]),
            ("wrong shape", wrong),
        )
        if names
    ]
    if faults:
        raise InputError(
            f"the weights in {folder} do not fit its config.json: {'; '.join(faults)}; "
            "copy or convert it again"
        )


def _check_size(folder: Path, config: TDCConfig) -> None:
    """Before memory is taken: what a configuration describes must be what the files hold."""
    with _one_line(folder), torch.device("meta"):
        described = sum(p.numel() for p in TDCForConditionalGeneration(config).parameters())
    held = Checkpoint(folder).size
    if described > 2 * held:  # an output matrix may be tied; which tensors differ is said later
        raise InputError(
            f"config.json in {folder} describes a model of {described} values, its weights hold "
            f"{held}; copy or convert it again"
        )


def _check_finite(folder: Path, model: torch.nn.Module) -> None:
    wrong = [
        name
        for name, p in model.named_parameters()
        if p.device.type != "meta" and not p.detach().sum(dtype=torch.float32).isfinite()
    ]
    if wrong:
        raise InputError(
            f"the weights in {folder} are not finite in {len(wrong)} tensors: {listed(wrong, 3)}; "
            "copy or convert it again"
        )


def _one_line(folder: str | os.PathLike[str]) -> AbstractContextManager[None]:
    """Errors of transformers and safetensors about a damaged folder."""
    return one_line(f"cannot load the model in {folder}")


def _describe(folder: Path, model: TDCForConditionalGeneration) -> str:
    config = model.config
    count = sum(p.numel() for p in model.parameters())
    size = f"{count / 1e9:.1f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"
    dtype = str(model.dtype).removeprefix("torch.")
    devices = sorted({str(p.device) for p in model.parameters()})
    return (
        f"{folder} ({config.text_config.model_type}, {size} parameters, {dtype}, "
        f"{', '.join(devices)})"
    )

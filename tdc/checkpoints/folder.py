# SPDX-License-Identifier: Apache-2.0
"""Folders of weights: reading shards one by one, writing them."""

from __future__ import annotations

import json
import math
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import InputError, listed

SHARD_BYTES = 2 * 2**30
JSON_BYTES = 64 * 2**20  # the index of a model of 100,000 tensors has 10 MB


Shapes = dict[str, tuple[int, ...]]


class Checkpoint:
    """Tensors of a folder with safetensors or PyTorch shards, read one at a time."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise InputError(f"no such folder: {folder}; expected a released checkpoint")
        check_files(self.folder)
        files = sorted(self.folder.glob("*.safetensors"))
        # Training folders carry other .bin files (optimizer, arguments): take weights only.
        files = files or sorted(self.folder.glob("pytorch_model*.bin"))
        if not files:
            raise InputError(
                f"{folder} holds no weights; expected model*.safetensors or pytorch_model*.bin"
            )
        self._file: dict[str, Path] = {}
        self.shapes: Shapes = {}
        for file in files:
            for name, shape, floating in self._scan(file):
                if name in self._file:
                    raise InputError(
                        f"{name} is in {self._file[name]} and in {file}; expected it in one file"
                    )
                if not floating and not name.endswith("position_ids"):
                    raise InputError(f"{name} in {file} holds integers; expected floating weights")
                self._file[name] = file
                self.shapes[name] = shape
        kind = "model.safetensors" if files[0].suffix == ".safetensors" else "pytorch_model.bin"
        index = self.folder / f"{kind}.index.json"
        if index.exists() or index.is_symlink():
            self._check_index(index)

    @property
    def size(self) -> int:
        """Values in all tensors."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def _check_index(self, path: Path) -> None:
        """What an index says must be so: transformers opens the files that it names."""
        places = read_json(path).get("weight_map")
        if not isinstance(places, dict):
            raise InputError(f"{path} has no weight_map; expected names of tensors and their files")
        wrong = [
            f"{name} in {file!r}"
            for name, file in places.items()
            if name not in self._file or self._file[name].name != file
        ]
        if wrong:
            raise InputError(
                f"{path} names tensors that are not there: {listed(wrong, 3)}; expected each in a "
                "file of this folder"
            )

    def config(self) -> dict[str, Any]:
        return read_json(self.folder / "config.json")

    def _scan(self, file: Path) -> Iterator[tuple[str, tuple[int, ...], bool]]:
        """Name, shape and whether it is floating of every tensor."""
        try:
            if file.suffix == ".safetensors":
                with safe_open(file, framework="pt") as shard:
                    for name in shard.keys():  # noqa: SIM118 - not a dict
                        part = shard.get_slice(name)
                        yield name, tuple(part.get_shape()), part.get_dtype()[:1] in "FB"
            else:
                for name, tensor in _load_bin(file).items():
                    yield name, tuple(tensor.shape), tensor.is_floating_point()
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"cannot read {file}: {_reason(error)}; copy or download it again"
            ) from None

    def tensors(self, names: Mapping[str, str]) -> Iterator[tuple[str, Tensor]]:
        """``(name, tensor)`` for the given names, file by file."""
        for file in sorted(set(self._file.values())):
            wanted = [name for name in names if self._file.get(name) == file]
            if file.suffix == ".safetensors":
                with safe_open(file, framework="pt") as shard:
                    for name in wanted:
                        yield name, shard.get_tensor(name)
            else:
                state = _load_bin(file)  # memory-mapped: pages come in as they are copied
                for name in wanted:
                    yield name, state[name]


class ShardWriter:
    """Writes safetensors shards of bounded size and their index."""

    def __init__(
        self,
        folder: Path,
        shard_bytes: int,
        total: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self._folder, self._limit = folder, shard_bytes
        self._pending: dict[str, Tensor] = {}
        self._size = self._bytes = 0
        self._shards: list[list[str]] = []
        self._done, self._total, self._progress = 0, total, progress

    def add(self, name: str, tensor: Tensor) -> None:
        tensor = tensor.contiguous().clone()  # off the memory map, so that the shard can be freed
        size = tensor.numel() * tensor.element_size()
        if self._pending and self._size + size > self._limit:
            self._flush()
        self._pending[name] = tensor
        self._size += size
        self._bytes += size
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, max(self._total, self._done))

    def _flush(self) -> None:
        path = self._folder / f"shard-{len(self._shards)}.safetensors"
        path.touch()
        rights = path.stat().st_mode
        save_file(self._pending, path, metadata={"format": "pt"})
        path.chmod(rights)  # safetensors writes private files (0600)
        self._shards.append(list(self._pending))
        self._pending, self._size = {}, 0

    def close(self) -> None:
        """Write what is left and give the shards the names that transformers looks for."""
        if self._pending:
            self._flush()
        count = len(self._shards)
        weight_map = {}
        for number, names in enumerate(self._shards):
            name = (
                "model.safetensors"
                if count == 1
                else f"model-{number + 1:05d}-of-{count:05d}.safetensors"
            )
            os.replace(self._folder / f"shard-{number}.safetensors", self._folder / name)
            weight_map.update(dict.fromkeys(names, name))
        if count > 1:
            index = {"metadata": {"total_size": self._bytes}, "weight_map": weight_map}
            path = self._folder / "model.safetensors.index.json"
            path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def check_files(folder: Path) -> None:
    """Refuse pipes, devices and links to nothing, which a loader would read without end."""
    for path in (*folder.glob("*"), *folder.glob("*/*")):
        if not (path.is_file() or path.is_dir()):
            raise InputError(f"{path} is no regular file; expected a checkpoint's files")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        InputError: the file is missing or no JSON object, or a key of it is there twice.
    """
    if not path.is_file():
        raise InputError(f"no such file: {path}; expected a checkpoint's configuration")
    if path.stat().st_size > JSON_BYTES:
        raise InputError(f"{path} has {path.stat().st_size >> 20} MB; expected a few kB of JSON")
    try:
        found = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError, OSError) as error:
        raise InputError(f"{path} is not JSON: {_reason(error)}") from None
    if not isinstance(found, dict):
        raise InputError(f"{path} holds a JSON {type(found).__name__}; expected an object")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"it has {listed(twice)} twice")
    return found


LAYERS = {"num_hidden_layers", "num_layers", "n_layer", "encoder_layers"}
LAYERS |= {"connector_depth", "connector_query_groups", "num_query_group"}


def check_depth(config: Mapping[str, Any], tensors: int, where: str | os.PathLike[str]) -> None:
    """Refuse a configuration with more layers than there are tensors: each has at least one, and
    building 10^9 of them never ends."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            check_depth(value, tensors, where)
        elif name in LAYERS and value is not None:
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise InputError(f"{name} in {where} is {value!r}; expected a number of layers")
            if value > tensors:
                raise InputError(
                    f"{name} in {where} is {value}; the weights are {tensors} tensors in all"
                )


def _load_bin(file: Path) -> dict[str, Tensor]:
    check_not_compressed(file)
    return torch.load(file, map_location="cpu", mmap=True, weights_only=True)


def check_not_compressed(file: str | os.PathLike[str]) -> None:
    """Refuse a .bin or .pt whose parts are compressed, which PyTorch never writes: 1 MB of it may
    become 1 GB."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
                raise InputError(f"{file} is compressed; expected a file written by torch.save")


@contextmanager
def one_line(what: str) -> Iterator[None]:
    """Errors of libraries about a damaged checkpoint as ``InputError``: ``what``, and the first of
    what they say. They raise all kinds of exceptions, down to plain ``Exception``."""
    try:
        yield
    except (InputError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise InputError(f"{what}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError):  # torch's text tells people to run the code
        return "it holds other things than tensors, or is damaged"
    text = " ".join(str(error).split())
    text = text if len(text) <= 300 else text[:300] + "..."
    plain = isinstance(error, (OSError, ValueError, RuntimeError)) and text
    return text if plain else f"{type(error).__name__}: {text}"

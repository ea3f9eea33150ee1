# SPDX-License-Identifier: Apache-2.0
"""Folders of weights: reading shards one by one, writing them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import InputError

SHARD_BYTES = 2 * 2**30


Shapes = dict[str, tuple[int, ...]]


class Checkpoint:
    """Tensors of a folder with safetensors or PyTorch shards, read one at a time."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise InputError(f"no such folder: {folder}; expected a released checkpoint")
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
            for name, shape in self._scan(file):
                self._file[name] = file
                self.shapes[name] = shape

    def config(self) -> dict[str, Any]:
        return read_json(self.folder / "config.json")

    def _scan(self, file: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
        try:
            if file.suffix == ".safetensors":
                with safe_open(file, framework="pt") as shard:
                    for name in shard.keys():  # noqa: SIM118 - not a dict
                        yield name, tuple(shard.get_slice(name).get_shape())
            else:
                for name, tensor in _load_bin(file).items():
                    yield name, tuple(tensor.shape)
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"cannot read {file}: {error}; copy or download it again") from None

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


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        InputError: the file is missing or not JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"no such file: {path}; expected a checkpoint's configuration") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not JSON: {error}") from None


def _load_bin(file: Path) -> dict[str, Tensor]:
    return torch.load(file, map_location="cpu", mmap=True, weights_only=True)

# SPDX-License-Identifier: Apache-2.0
"""What the frozen towers gave for a media file, kept on disk: one safetensors file per medium.

At the paper's sizes a frame takes 576 * (1152 + 1536) values, 3.1 MB in bf16, and its sound
77 kB: 224 frames are 0.7 GB. An entry is written under a temporary name and then renamed, so that
it is whole or absent; it is read through a memory map. It holds the identity of the medium's file
(size, time of change), of the towers' weights and of the preprocessing: where one of them differs
it counts as absent and is written again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ..config import TDCConfig
from ..files import whole_file
from .video_encoder import VideoEncoder

if TYPE_CHECKING:
    from .tower_features import TowerFeatures

logger = logging.getLogger(__name__)

FORMAT = 1
# What decides pixels, tokens and the frames' sound, beside the towers' weights.
PREPROCESSING = (
    "fps",
    "siglip_image_size",
    "dinov2_image_size",
    "tower_grid",
    "audio_tokens_per_frame",
    "audio_alignment",
    "audio_padding",
    "audio_half_precision",
    "audio_channel",
)


def towers_fingerprint(encoder: VideoEncoder, config: TDCConfig) -> str:
    """Digest of the frozen towers' weights and of the preprocessing."""
    digest = hashlib.blake2b(digest_size=16)
    settings = {name: getattr(config, name) for name in PREPROCESSING}
    digest.update(json.dumps([FORMAT, settings], sort_keys=True).encode())
    for name in ("siglip", "dinov2", "beats"):
        tower = getattr(encoder, name)
        for key, tensor in [] if tower is None else sorted(tower.state_dict().items()):
            digest.update(f"{name}.{key} {tensor.dtype} {list(tensor.shape)}".encode())
            flat = tensor.detach().cpu().contiguous().flatten()
            digest.update(memoryview(flat.view(torch.uint8).numpy()))
    return digest.hexdigest()


class FeatureStore:
    """Tower features of media files in a folder.

    Args:
        folder: created if it is not there.
        fingerprint: :func:`towers_fingerprint`.
    """

    def __init__(self, folder: str | os.PathLike[str], fingerprint: str) -> None:
        self.folder, self.fingerprint = Path(folder), fingerprint
        self.folder.mkdir(parents=True, exist_ok=True)

    def key(self, path: str | os.PathLike[str], sound: Any, max_frames: int) -> str:
        """Names the entry of a file (and of its sound) on at most so many frames.

        Args:
            sound: a file, False for silence, or None for the video's own track.
        """
        own = sound if sound is None or sound is False else _identity(sound)
        return json.dumps([_identity(path), own, max_frames])

    def load(self, key: str) -> TowerFeatures | None:
        """The entry, memory-mapped; None where there is none that still holds."""
        for whole in (True, False):
            features = self._read(key, whole)
            if features is not None and len(features.siglip) <= json.loads(key)[2]:
                return features
        return None

    def save(self, key: str, features: TowerFeatures, whole: bool = False) -> None:
        """Write an entry. ``whole``: no frame was left out, so that it serves any longer limit."""
        tensors = {"siglip": features.siglip, "dinov2": features.dinov2}
        if features.audio is not None:
            tensors["audio"] = features.audio
        facts = {
            "size": list(features.size),
            "times": None if features.times is None else list(features.times),
            "audio_lengths": None
            if features.audio_lengths is None
            else list(features.audio_lengths),
            "is_video": features.is_video,
        }
        path = self._path(key, whole)
        path.parent.mkdir(exist_ok=True)
        with whole_file(path) as temporary:
            save_file(
                {name: x.detach().cpu().contiguous().clone() for name, x in tensors.items()},
                temporary,
                {"identity": self._identity(key), "facts": json.dumps(facts)},
            )

    def _read(self, key: str, whole: bool) -> TowerFeatures | None:
        from .tower_features import TowerFeatures

        path = self._path(key, whole)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                about = file.metadata()
                if about["identity"] != self._identity(key):
                    return None
                facts = json.loads(about["facts"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except Exception as error:  # safetensors' own errors derive from Exception alone
            logger.warning("%s cannot be read (%s) and is made again", path, error)
            return None
        facts["size"] = tuple(facts["size"])
        return dataclasses.replace(
            TowerFeatures(tensors["siglip"], tensors["dinov2"]), audio=tensors.get("audio"), **facts
        )

    def _identity(self, key: str) -> str:
        """What must be the same for an entry to hold: both files' states, towers, preprocessing."""
        visual, sound, _ = json.loads(key)
        return json.dumps([visual, sound, self.fingerprint])

    def _path(self, key: str, whole: bool) -> Path:
        """The same for a changed file, so that the new entry takes the old one's place."""
        visual, sound, limit = json.loads(key)
        place = [visual[0], sound[0] if isinstance(sound, list) else sound, whole or limit]
        name = hashlib.blake2b(json.dumps(place).encode(), digest_size=16).hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"


def _identity(path: str | os.PathLike[str]) -> list[Any]:
    found = os.stat(path)
    return [os.path.realpath(path), found.st_size, found.st_mtime_ns]

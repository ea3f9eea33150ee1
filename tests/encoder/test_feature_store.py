# SPDX-License-Identifier: Apache-2.0
"""Tower outputs on disk: the same loss, and never an answer from yesterday."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import pytest
import torch
from toy import toy_processor
from train_samples import calm_model, settings

from tdc.encoder.feature_store import FeatureStore, towers_fingerprint
from tdc.encoder.tower_features import TowerFeatures
from tdc.train.data.collator import Collator
from tdc.train.data.records import parse
from tdc.train.run import train


@pytest.fixture
def folder(media_dir, tmp_path) -> Path:
    """Media of its own, and a place for the store."""
    return Path(shutil.copytree(media_dir, tmp_path / "media"))


def entries(folder):
    return sorted(folder.rglob("*.safetensors"))


class Towers:
    """A collator and an encoder over one store, and whether the towers ran."""

    def __init__(self, folder, model=None):
        self.model = calm_model().eval() if model is None else model
        config = self.model.config
        self.store = FeatureStore(folder, towers_fingerprint(self.model.video_encoder, config))
        self.collator = Collator(toy_processor(config), store=self.store)

    def see(self, **media):
        example = parse({**media, "question": "What?", "answer": "It."})
        media = self.collator([example])["features"]
        self.ran = media.items[0] is None
        return media.encode(self.model.video_encoder)


def test_the_loss_is_the_same_with_and_without(tmp_path, model_dir, media_dir):
    common = {
        "model": str(model_dir),
        "data": [str(media_dir / "sounds.json")],
        "data_folder": str(media_dir),
    }

    def losses(name, **more):
        trainer = train(settings(tmp_path / name, **common, **more), 3)
        return [float(e["loss"]) for e in trainer.state.log_history if "loss" in e]

    without = losses("a")
    cache = tmp_path / "cache"
    filled = losses("b", feature_cache=str(cache))
    written = {path: path.stat().st_mtime_ns for path in entries(cache)}
    assert len(written) == 3  # two videos, and one of them with another's sound
    used = losses("c", feature_cache=str(cache))
    assert filled == used == without
    assert written == {path: path.stat().st_mtime_ns for path in entries(cache)}


def test_an_entry_holds_what_the_towers_gave(folder, tmp_path):
    towers = Towers(tmp_path / "cache")
    first = towers.see(video=str(folder / "loud.mp4"))
    assert towers.ran
    again = towers.see(video=str(folder / "loud.mp4"))
    assert not towers.ran
    assert torch.equal(first.visual.final(), again.visual.final()) and torch.equal(
        first.audio, again.audio
    )
    assert first.times == again.times and first.audio_lengths == again.audio_lengths


def test_a_changed_file_is_seen_again(folder, tmp_path):
    towers = Towers(tmp_path / "cache")
    before = towers.see(image=str(folder / "a.png"))
    shutil.copy(folder / "b.png", folder / "a.png")
    after = towers.see(image=str(folder / "a.png"))
    assert towers.ran and before.images[0].shape != after.images[0].shape
    assert len(entries(tmp_path / "cache")) == 1  # in the old one's place
    towers.see(image=str(folder / "a.png"))
    assert not towers.ran


def test_a_touched_file_and_changed_sound_are_seen_again(folder, tmp_path):
    towers = Towers(tmp_path / "cache")
    media = {"video": str(folder / "mute.mp4"), "audio": str(folder / "tone.mp4")}
    towers.see(**media)
    os.utime(folder / "tone.mp4", (0, 0))
    towers.see(**media)
    assert towers.ran
    towers.see(video=str(folder / "mute.mp4"))
    assert towers.ran  # the same video without that sound is another entry
    towers.see(**media)
    assert not towers.ran


def test_other_weights_and_other_preprocessing_are_other_entries(folder, tmp_path):
    towers = Towers(tmp_path / "cache")
    image = str(folder / "a.png")
    towers.see(image=image)
    changed = calm_model()
    with torch.no_grad():
        next(changed.video_encoder.beats.parameters()).add_(1e-3)
    for model in (changed, calm_model(audio_tokens_per_frame=5), calm_model(fps=2.0)):
        other = Towers(tmp_path / "cache", model)
        other.see(image=image)
        assert other.ran
        towers.see(image=image)  # the entry is the first model's again
        assert towers.ran


def test_connector_weights_do_not_matter(folder, tmp_path):
    towers = Towers(tmp_path / "cache")
    towers.see(image=str(folder / "a.png"))
    with torch.no_grad():
        towers.model.video_encoder.connector.query.add_(1)
    other = Towers(tmp_path / "cache", towers.model)
    other.see(image=str(folder / "a.png"))
    assert not other.ran


def test_a_damaged_entry_is_made_again(folder, tmp_path, caplog):
    towers = Towers(tmp_path / "cache")
    towers.see(image=str(folder / "a.png"))
    (file,) = entries(tmp_path / "cache")
    file.write_bytes(file.read_bytes()[:50])
    with caplog.at_level(logging.WARNING):
        towers.see(image=str(folder / "a.png"))
    assert towers.ran and "cannot be read" in caplog.text
    towers.see(image=str(folder / "a.png"))
    assert not towers.ran


def test_a_write_that_fails_leaves_nothing(folder, tmp_path, monkeypatch):
    towers = Towers(tmp_path / "cache")

    def fail(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("tdc.encoder.feature_store.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        towers.see(image=str(folder / "a.png"))
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_whole_videos_serve_every_limit_and_thinned_ones_their_own(tmp_path):
    store = FeatureStore(tmp_path / "cache", "towers")
    video = tmp_path / "v.mp4"
    video.write_bytes(b"x")

    def features(frames):
        tokens = torch.randn(frames, 4, 2)
        return TowerFeatures(tokens, tokens, times=tuple(range(frames)))

    store.save(store.key(video, None, 16), features(16))  # thinned to 16
    assert store.load(store.key(video, None, 32)) is None
    assert len(store.load(store.key(video, None, 16)).siglip) == 16
    store.save(store.key(video, None, 64), features(40), whole=True)
    assert len(store.load(store.key(video, None, 99)).siglip) == 40
    assert len(store.load(store.key(video, None, 16)).siglip) == 16

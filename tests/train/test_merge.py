# SPDX-License-Identifier: Apache-2.0
"""LoRA into the model: the same logits."""

from __future__ import annotations

import pytest
import torch
from train_samples import settings

from tdc.checkpoints.load import load_model
from tdc.cli.main import main
from tdc.train.run import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory, model_dir, media_dir):
    """An adapter, and logits of the model it belongs to."""
    output = tmp_path_factory.mktemp("adapter") / "out"
    chosen = settings(
        output,
        model=str(model_dir),
        data=[str(media_dir / "sounds.json")],
        data_folder=str(media_dir),
        save_steps=3,
        learning_rate=1e-2,
    )
    trainer = train(chosen, 3)
    batch = trainer.data_collator([trainer.train_dataset[0]])
    del batch["labels"]
    with torch.no_grad():
        logits = trainer.model.eval()(**batch).logits
    return output, batch, logits


def logits_of(folder, batch):
    model = load_model(folder, "cpu").model
    with torch.no_grad():
        return model(**batch).logits


def test_merged_gives_the_adapters_logits(trained, tmp_path, model_dir, capsys):
    adapter, batch, expected = trained
    assert main(["merge", str(adapter), str(tmp_path / "merged")]) == 0
    assert "merged from" in capsys.readouterr().out
    torch.testing.assert_close(logits_of(tmp_path / "merged", batch), expected)
    assert (logits_of(model_dir, batch) - expected).abs().max() > 1e-2  # training moved it


def test_a_checkpoint_can_be_merged(trained, tmp_path):
    adapter, batch, expected = trained
    assert main(["merge", str(adapter / "checkpoint-3"), str(tmp_path / "merged")]) == 0
    assert (logits_of(tmp_path / "merged", batch) - expected).abs().max() > 1e-4  # three steps less
    rights = (tmp_path / "merged" / "model.safetensors").stat().st_mode
    assert rights & 0o777 == 0o644  # others may read it


def test_what_cannot_be_merged(trained, tmp_path, model_dir, capsys):
    adapter, _, _ = trained
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").touch()
    for words, message in (
        ([tmp_path / "none", tmp_path / "out"], "no such folder"),
        ([model_dir, tmp_path / "out"], "holds no LoRA adapter"),
        ([adapter, full], "exists and is not empty"),
        ([adapter, tmp_path / "out", "--model", tmp_path / "gone"], "no such folder"),
    ):
        assert main(["merge", *map(str, words)]) == 2
        err = capsys.readouterr().err
        assert message in err and len(err.splitlines()) == 1
        assert not (tmp_path / "out").exists()

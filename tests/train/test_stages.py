# SPDX-License-Identifier: Apache-2.0
"""What each stage trains, and how many tokens it makes of a frame."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from toy import toy_processor
from train_samples import calm_config, calm_model, examples, settings

from tdc import InputError, TDCConfig
from tdc.train.config import TrainConfig
from tdc.train.stages import get_stage, plain_name, row_of, stage_grids, trained_table
from tdc.train.trainer import build_trainer

CONNECTOR, QFORMER, AUDIO = "connector", "Q-Former", "audio projection"
PROJECTIONS, TEXT, LORA = (
    "compressor's projections, separator",
    "language model",
    "language model, LoRA",
)
TRAINED = {
    1: {CONNECTOR, TEXT},
    2: {CONNECTOR, QFORMER, PROJECTIONS, TEXT},
    3: {QFORMER, PROJECTIONS, AUDIO, LORA},
}


def trainer_of(tmp_path, stage, data=None, **changes):
    model = calm_model()
    chosen = settings(tmp_path, **changes)
    data = examples(4) if data is None else data
    processor = toy_processor(model.config)
    return build_trainer(chosen, stage, model=model, processor=processor, dataset=data)


def test_576_tokens_a_picture_then_144_a_frame():
    side = TDCConfig().tower_grid
    assert stage_grids(get_stage(1), side) == {"connector_grid": 24, "frame_grid": 24}
    for number in (2, 3):
        assert stage_grids(get_stage(number), side) == {"connector_grid": 12, "frame_grid": 12}


def test_no_other_stage():
    with pytest.raises(InputError, match="stage is 4; expected 1, 2 or 3"):
        get_stage(4)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_gradients_reach_what_the_table_says_and_nothing_else(tmp_path, stage):
    data = examples(4)
    if stage == 1:
        data = [
            {
                "image": dataclasses.replace(
                    e["video"],
                    siglip=e["video"].siglip[:1],
                    dinov2=e["video"].dinov2[:1],
                    audio=None,
                    is_video=False,
                ),
                **{k: e[k] for k in ("question", "answer")},
            }
            for e in data
        ]
    trainer = trainer_of(tmp_path, stage, data)
    model = trainer.model
    batch = trainer.data_collator(data)
    model(**batch).loss.backward()
    reached, missed = {}, []
    for name, parameter in model.named_parameters():
        plain = plain_name(name)
        has_gradient = parameter.grad is not None
        assert has_gradient == parameter.requires_grad, name
        if plain is not None:
            reached.setdefault(row_of(plain), set()).add(has_gradient)
        if has_gradient and not bool(parameter.grad.any()):
            missed.append(plain)
    assert {row for row, states in reached.items() if True in states} == TRAINED[stage]
    # Every row is wholly trained or wholly frozen.
    assert all(len(states) == 1 for states in reached.values()), reached
    rows = {row[0]: row[2] for row in trained_table(model, trainer.settings)[:-1]}
    assert {title for title, state in rows.items() if state == "trained"} == TRAINED[stage]
    assert {"SigLIP", "DINOv2", "BEATs"} <= rows.keys() - TRAINED[stage]
    # LoRA's B starts at zero, so its A has no gradient yet; nobody reads the text rows of the
    # Q-Former's last layer; a key's bias moves all scores alike.
    excused = ("lora_A", "layers.2.ffn_text", ".key.bias", "k_proj.bias")
    assert not [name for name in missed if not any(e in name for e in excused)], missed


def test_the_table_adds_up(tmp_path):
    trainer = trainer_of(tmp_path, 2)
    *rows, last = trained_table(trainer.model, trainer.settings)
    number = lambda text: int(text.split()[0].replace(",", ""))  # noqa: E731
    assert number(last[1]) == sum(p.numel() for p in trainer.model.parameters())
    assert number(last[1]) == sum(number(row[1]) for row in rows)
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    assert last[2] == f"{trained:,} trained"


def test_a_rate_for_each_part_reaches_the_optimizer_and_the_table(tmp_path):
    rates = {"connector_learning_rate": 2e-4, "compressor_learning_rate": 3e-4}
    trainer = trainer_of(tmp_path, 2, learning_rate=1e-4, **rates)
    by_parameter = {
        id(p): group["lr"]
        for group in trainer.create_optimizer().param_groups
        for p in group["params"]
    }
    for name, parameter in trainer.model.named_parameters():
        expected = {"video_encoder": 2e-4, "compressor": 3e-4}.get(name.split(".")[0], 1e-4)
        if parameter.requires_grad:
            assert by_parameter.pop(id(parameter)) == expected, name
    assert not by_parameter  # nothing frozen in the optimizer
    shown = {row[0]: row[3] for row in trained_table(trainer.model, trainer.settings)}
    assert (shown[CONNECTOR], shown[QFORMER], shown[TEXT]) == ("0.0002", "0.0003", "0.0001")


def test_parts_of_your_own(tmp_path):
    trainer = trainer_of(tmp_path, 2, parts=["compressor"], sound=True)
    trained = {
        row[0] for row in trained_table(trainer.model, trainer.settings) if row[2] == "trained"
    }
    assert trained == {QFORMER, PROJECTIONS, AUDIO}


def test_stage_2_is_deaf(tmp_path):
    trainer = trainer_of(tmp_path, 2)
    batch = trainer.data_collator(examples(2, sound=True))
    assert all(item.audio is None for item in batch["features"])
    assert all(
        item.audio is not None
        for item in trainer_of(tmp_path, 3).data_collator(examples(2))["features"]
    )


def test_lora_covers_every_matrix_of_the_language_model(tmp_path):
    trainer = trainer_of(tmp_path, 3)
    adapted = {
        name.split(".lora_A")[0]
        for name, _ in trainer.model.named_parameters()
        if ".lora_A" in name
    }
    linear = {
        f"base_model.model.language_model.{name}"
        for name, module in calm_model().language_model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }
    assert adapted == linear


def test_fsdp_wraps_the_language_models_layers_alone(tmp_path):
    trainer = trainer_of(tmp_path, 2)
    assert trainer.model._no_split_modules == ["Qwen2DecoderLayer"]
    assert isinstance(trainer.settings, TrainConfig) and calm_config().frame_grid == 4

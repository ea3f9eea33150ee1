# SPDX-License-Identifier: Apache-2.0
"""Settings from YAML: types, unknown keys, the committed files."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest

import tdc.train
from tdc import InputError
from tdc.train.config import TrainConfig, load_config

CONFIGS = Path(tdc.train.__file__).parent / "configs"
STAGE_FILES = sorted(CONFIGS.glob("*/stage*.yaml"))


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_every_stage_of_both_families_is_there():
    names = {str(file.relative_to(CONFIGS)) for file in STAGE_FILES}
    families = ("qwen2-7b", "llama-3.2-3b")
    assert names == {f"{family}/stage{n}.yaml" for family in families for n in (1, 2, 3)}


@pytest.mark.parametrize("file", STAGE_FILES, ids=lambda f: f"{f.parent.name}-{f.stem}")
def test_committed_files_load(file):
    settings = load_config(file)
    assert settings.stage == int(file.stem[-1])
    # What the paper's stages have in common.
    assert (settings.lr_scheduler, settings.warmup_ratio) == ("cosine", 0.03)
    assert settings.max_context_length == 8192
    assert settings.bf16 and settings.gradient_checkpointing


def test_numbers_that_yaml_takes_for_text(tmp_path):
    settings = load_config(write(tmp_path / "a.yaml", "learning_rate: 1e-5\nepochs: 2\n"))
    assert (settings.learning_rate, settings.epochs) == (1e-5, 2.0)
    assert isinstance(settings.epochs, float)


def test_overrides(tmp_path):
    file = write(tmp_path / "a.yaml", "learning_rate: 1e-5\nmodel_config: {num_scenes: 3}\n")
    chosen = ["learning_rate=2e-4", "model_config.num_context_tokens=8", "data=a.json"]
    settings = load_config(file, chosen)
    assert settings.learning_rate == 2e-4
    assert settings.model_config == {"num_scenes": 3, "num_context_tokens": 8}
    assert settings.data == ["a.json"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("learning_rat: 1", "unknown key learning_rat; did you mean learning_rate?"),
        ("learning_rate: fast", "learning_rate is 'fast'; expected a number"),
        ("learning_rate: -1", "learning_rate is -1.0; expected a number above 0"),
        ("batch_size: true", "batch_size is True; expected a whole number"),
        ("bf16: 1", "bf16 is 1; expected true or false"),
        ("on_bad_record: drop", "on_bad_record is 'drop'; expected one of 'refuse', 'skip'"),
        ("parts: [towers]", "parts is 'towers'; expected any of connector, compressor"),
        ("parts: [lora, language_model]", "expected one of the two"),
        ("warmup_ratio: 1.5", "warmup_ratio is 1.5"),
        ("output_dir: null", "output_dir is None; expected text"),
        ("- a", "holds no settings"),
        ("a: [", "is not YAML"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, text, message):
    file = write(tmp_path / "a.yaml", text)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        load_config(file)
    assert str(file) in str(caught.value)


def test_missing_file_and_bad_override(tmp_path):
    with pytest.raises(InputError, match="cannot read"):
        load_config(tmp_path / "none.yaml")
    file = write(tmp_path / "a.yaml", "seed: 1")
    with pytest.raises(InputError, match="expected key=value"):
        load_config(file, ["seed"])


def test_every_field_has_a_comment():
    source = inspect.getsource(TrainConfig).splitlines()
    for field in fields(TrainConfig):
        place = next(i for i, line in enumerate(source) if line.startswith(f"    {field.name}:"))
        # The parts' own learning rates are explained with the common one.
        excused = field.name in ("connector_learning_rate", "compressor_learning_rate")
        assert "#" in source[place] or source[place - 1].startswith("    #") or excused, field.name

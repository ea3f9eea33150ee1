# SPDX-License-Identifier: Apache-2.0
"""Runs: the command, resuming, two processes, backends, batching."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import distributed as dist
from toy import toy_processor
from train_samples import calm_model, examples, record, settings, write_list

import tdc_kernels
from tdc import InputError, TDCForConditionalGeneration
from tdc.checkpoints.load import load_model
from tdc.cli.main import main
from tdc.train.run import train
from tdc.train.trainer import build_trainer, last_checkpoint, leave_process_group
from tiny.model import TEMPLATE

HERE = Path(__file__).parent


def losses(trainer):
    return [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]


def run_on_examples(output, data, stage=3, **changes):
    model = calm_model()
    trainer = build_trainer(
        settings(output, **changes),
        stage,
        model=model,
        processor=toy_processor(model.config),
        dataset=data,
    )
    trainer.train()
    return trainer


@pytest.fixture
def config_file(tmp_path, model_dir, media_dir):
    file = tmp_path / "settings.yaml"
    file.write_text(
        f"model: {model_dir}\ndata: {media_dir}/videos.json\ndata_folder: {media_dir}\n"
        f"output_dir: {tmp_path}/out\ndevice: cpu\nbf16: false\nmax_steps: 3\nbatch_size: 2\n"
        "learning_rate: 1e-3\nworkers: 0\nlogging_steps: 1\n"
    )
    return file


def test_the_command_trains_and_saves_a_model(config_file, tmp_path, capsys):
    assert main(["train", "2", "--config", str(config_file)]) == 0
    out, err = capsys.readouterr()
    assert "stage 2, video instruction tuning: 4 records, 16 tokens a frame" in out
    assert re.search(r"SigLIP +14,128 +frozen", out) and re.search(r"Q-Former +\S+ +trained", out)
    assert "step 3 of 3: loss" in err
    assert list((tmp_path / "out" / "runs").rglob("events.out.tfevents.*"))
    loaded = load_model(tmp_path / "out", "cpu")  # refuses missing and unexpected tensors
    assert loaded.model.config.frame_grid == 4


def test_the_command_trains_in_bf16_with_checkpointing(config_file, tmp_path, capsys):
    options = ["bf16=true", "gradient_checkpointing=true", "max_steps=2"]
    sets = [word for option in options for word in ("--set", option)]
    assert main(["train", "3", "--config", str(config_file), *sets]) == 0
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    assert "loss nan" not in capsys.readouterr().err


def test_stage_1_makes_a_token_of_every_cell_and_stage_2_starts_from_it(
    config_file, tmp_path, media_dir, capsys
):
    first = ["--set", f"data={media_dir}/images.json", "--set", "max_steps=2"]
    assert main(["train", "1", "--config", str(config_file), *first]) == 0
    assert "64 tokens a frame" in capsys.readouterr().out
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["connector_grid"], config["frame_grid"]) == (8, 8)
    shutil.move(tmp_path / "out", tmp_path / "stage1")
    then = ["--set", f"model={tmp_path}/stage1", "--set", "max_steps=1"]
    assert main(["train", "2", "--config", str(config_file), *then]) == 0
    assert "16 tokens a frame" in capsys.readouterr().out
    before, after = (load_file(tmp_path / n / "model.safetensors") for n in ("stage1", "out"))
    positions = {name for name in after if name.endswith(".position")}
    assert positions and positions == after.keys() - before.keys()


@pytest.mark.parametrize(
    "change, message",
    [
        ("stage=1", "is meant for stage 1, not 2"),
        ("model=nowhere", "no such folder: nowhere"),
        ("model_config.frame_grid=3", "frame_grid, which follows from the stage"),
        ("model_config.frame_grit=3", "frame_grit, which is no field of TDCConfig"),
        ("model=null", "names neither model nor language_model"),
        ("data=[]", "no records in data"),
        ("learning_rte=1", "did you mean learning_rate?"),
    ],
)
def test_bad_settings_are_one_line(config_file, tmp_path, change, message, capsys):
    assert main(["train", "2", "--config", str(config_file), "--set", change]) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named(config_file, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.setattr("tdc.train.find_spec", lambda name: None if name == "peft" else name)
    assert main(["train", "2", "--config", str(config_file)]) == 2
    assert "peft is not installed; it comes with the extra" in capsys.readouterr().err


def test_stage_3_wants_ears(tmp_path):
    model = calm_model(audio_config=None)
    processor, data = toy_processor(model.config), examples(2, sound=False)
    with pytest.raises(InputError, match="has no audio encoder"):
        build_trainer(settings(tmp_path), 3, model=model, processor=processor, dataset=data)
    chosen = settings(tmp_path, sound=False, max_steps=1)
    build_trainer(chosen, 3, model=model, processor=processor, dataset=data).train()


def test_a_dry_run_trains_nothing(config_file, tmp_path, capsys):
    assert main(["train", "2", "--config", str(config_file), "--dry-run"]) == 0
    assert "4 records" in capsys.readouterr().out
    assert not list(tmp_path.glob("out/*.safetensors"))


@pytest.mark.parametrize("stage", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_resumed_is_uninterrupted_bit_for_bit(tmp_path, model_dir, media_dir, stage):
    weights = "model.safetensors" if stage == 2 else "adapter_model.safetensors"
    common = {
        "model": str(model_dir),
        "data": [str(media_dir / "sounds.json")],
        "data_folder": str(media_dir),
        "lora_dropout": 0.2,
        "save_steps": 2,
        "save_total_limit": None,
    }
    whole = train(settings(tmp_path / "whole", **common), stage)
    part = settings(tmp_path / "part", **common)
    train(part, stage)
    # As if it had been killed while writing its last checkpoint, after step 4.
    (tmp_path / "part" / weights).unlink()
    (tmp_path / "part" / "checkpoint-6" / "trainer_state.json").write_text('{"epo')
    (tmp_path / "part" / "checkpoint-4" / "trainer_state.json").write_text("")
    said = []
    again = train(part, stage, say=said.append)
    assert said[0].endswith("checkpoint-2")
    assert again.state.global_step == 6 and losses(again) == losses(whole)
    a, b = (load_file(tmp_path / n / weights) for n in ("whole", "part"))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_last_checkpoint_of_nothing(tmp_path):
    assert last_checkpoint(tmp_path) is None


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(tmp_path):
    """With DDP, and with the parameters sharded as FSDP 2 shards them."""
    script = HERE / "two_processes.py"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    launch += ["--log-dir", str(tmp_path / "ranks"), "--tee", "3"]
    for words, name, size in (([sys.executable], "one", 4), (launch, "two", 2)):
        command = [*words, str(script), str(tmp_path / name), str(size)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=170)
        assert done.returncode == 0, done.stdout + done.stderr  # whole, and every rank's
    one, two = (json.loads((tmp_path / n / "losses.json").read_text()) for n in ("one", "two"))
    assert two["processes"] == 2 and len(one["losses"]) == 5
    assert two["losses"] == pytest.approx(one["losses"], rel=2e-5)
    assert two["sharded"] == pytest.approx(one["unsharded"], rel=2e-5)


def gloo_threads():
    tasks = Path("/proc/self/task").iterdir()
    return [task.joinpath("comm").read_text().strip() for task in tasks].count("pt_gloo_runloop")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/task")
def test_no_thread_of_gloo_outlives_the_run(tmp_path):
    """One would abort a process that ends: now and then, and in the rank that has nothing more to
    do than to end."""

    def run():
        model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))
        model.itself = [model]  # a circle
        model(torch.ones(1, 2)).sum().backward()

    leave_process_group()  # of no group
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    run()
    assert gloo_threads()
    leave_process_group()
    assert not gloo_threads()


def test_fused_and_reference_ops_give_the_same_loss_curve(tmp_path):
    data = examples(8)
    curves = {}
    for backend in ("auto", "reference"):
        with tdc_kernels.use_backend(backend):
            trainer = run_on_examples(
                tmp_path / backend,
                data,
                stage=2,
                max_steps=30,
                batch_size=4,
                learning_rate=5e-3,
                sound=True,
            )
        curves[backend] = torch.tensor(losses(trainer))
    assert curves["auto"][-5:].mean() < 0.7 * curves["auto"][:5].mean()  # it learns
    # Roundings of fp32 (6e-8) grow through 30 updates, but stay far below a step's progress.
    torch.testing.assert_close(curves["auto"], curves["reference"], rtol=1e-3, atol=1e-4)


def test_accumulated_gradients_equal_a_large_batch(tmp_path):
    data = examples(8)
    at_once = run_on_examples(tmp_path / "a", data, stage=2, batch_size=4)
    in_parts = run_on_examples(tmp_path / "b", data, stage=2, batch_size=2, gradient_accumulation=2)
    assert losses(in_parts) == pytest.approx(losses(at_once), rel=1e-4)


def test_loss_on_label_positions_alone_is_the_whole_loss(tmp_path):
    data = examples(5)
    trainer = run_on_examples(tmp_path, data, stage=2, max_steps=1)
    batch = trainer.data_collator(data)
    slim = trainer.model.eval()(**batch)
    trainer.model.language_model._forward_pre_hooks.clear()
    full = trainer.model(**batch)
    assert slim.logits.shape[1] < full.logits.shape[1]
    torch.testing.assert_close(slim.loss, full.loss)


def test_a_batch_gives_what_its_examples_give_alone(tmp_path):
    data = examples(3) + examples(2, frames=6, seed=1)
    trainer = run_on_examples(tmp_path, data, stage=2, max_steps=1)
    model, collate = trainer.model.eval(), trainer.data_collator
    with torch.no_grad():
        together = model(**collate(data), num_items_in_batch=torch.tensor(1.0)).loss
        alone = [model(**collate([e]), num_items_in_batch=torch.tensor(1.0)).loss for e in data]
    torch.testing.assert_close(together, sum(alone))


def test_turns_apart_are_questions_asked_alone(tmp_path):
    """The same loss as when every question stands alone, in a template without words up front."""
    asked = [("What?", "A red one."), ("Where is the cat now?", "Left."), ("And who?", "Nobody.")]
    short, long = examples(1)[0], examples(1, frames=6, seed=1)[0]
    talks = [talk(short, asked), talk(long, asked[:2])]
    single = [talk(medium, [turn]) for medium, n in ((short, 3), (long, 2)) for turn in asked[:n]]
    trainer = run_on_examples(tmp_path, single, stage=2, max_steps=1, separate_turns=True)
    model, collate, one = trainer.model.eval(), trainer.data_collator, torch.tensor(1.0)
    collate.processor.chat_template = TEMPLATE
    model.config.question_in_compressor = False  # it hears a talk's last question alone
    with torch.no_grad():
        apart = model(**collate(talks), num_items_in_batch=one).loss
        alone = [model(**collate([e]), num_items_in_batch=one).loss for e in single]
        collate.separate_turns = False
        in_a_row = model(**collate(talks), num_items_in_batch=one).loss
    torch.testing.assert_close(apart, sum(alone))
    assert abs(in_a_row - apart) > 1e-4 * apart  # assert_close allows 1.3e-6


def test_turns_apart_want_attention_with_a_mask(tmp_path):
    model = calm_model()
    model.language_model.set_attn_implementation("eager")
    with pytest.raises(InputError, match="separate_turns needs a mask that eager attention"):
        build_trainer(
            settings(tmp_path, separate_turns=True),
            2,
            model=model,
            processor=toy_processor(model.config),
            dataset=examples(2),
        )


def talk(example, turns):
    said = []
    for question, answer in turns:
        said += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    said[0]["value"] = "<video>" + said[0]["value"]
    return {"video": example["video"], "conversations": said}


def test_an_unreadable_medium_is_named_or_replaced(tmp_path, media_dir, model_dir, caplog):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    shutil.copy(media_dir / "mute.mp4", tmp_path)
    entries = [record("A?", "B.", video=f"{name}.mp4") for name in ("broken", "mute")]
    common = {
        "model": str(model_dir),
        "data": [str(write_list(tmp_path / "list.json", entries))],
        "data_folder": str(tmp_path),
        "max_steps": 1,
    }
    with pytest.raises(InputError, match=r"list\.json\[0\] \(id A\?\): not a video"):
        train(settings(tmp_path / "a", **common), 2)
    train(settings(tmp_path / "b", on_bad_record="skip", **common), 2)
    assert "the next record takes its place" in caplog.text


def test_text_alone_trains(tmp_path):
    data = [{"question": "One and one?", "answer": "Two."}] * 4
    trainer = run_on_examples(tmp_path, data, stage=2, max_steps=2)
    assert len(losses(trainer)) == 2
    assert isinstance(trainer.model, TDCForConditionalGeneration)

# SPDX-License-Identifier: Apache-2.0
"""The whole model against the recordings of the authors' code in ``data``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import recording as rec
import run
import torch

import tdc.compressor.compressor
from tdc.compressor.speedups import Speedups
from tdc_kernels import registry

DATA = Path(__file__).parent / "data"
CASES = sorted(path.stem for path in DATA.glob("c[0-9]*_*.npz"))
MEGABYTE = 10**6
WAYS = [  # Triton's interpreter takes 6 to 18 seconds for each
    pytest.param(name, how, marks=[pytest.mark.slow] * (how == "triton"))
    for name in ("c01c_T_S3", "c02b_audio_short", "c06_learned")
    for how in ("plain", "joint keys and values", *registry.backends())
]


def test_there_are_recordings_and_they_are_small():
    assert len(CASES) >= 20
    assert set(CASES) == set(rec.read_json(DATA, "cases.json")["cases"])
    assert sum(file.stat().st_size for file in DATA.iterdir()) < 6 * MEGABYTE


@pytest.mark.parametrize("name", CASES)
def test_recording_is_reproduced(name):
    result = run.run_case(DATA, name)
    assert result.failures == []
    assert {"inputs_embeds", "logits"} <= set(result.errors)


@pytest.mark.parametrize(("name", "how"), WAYS)
def test_recording_is_reproduced_in_every_way(name, how, monkeypatch):
    """By every backend, and by the compressor with all speedups and with none."""
    if how in registry.backends():
        missing = [r for r in registry.table("cpu") if r.backend == how and not r.available]
        if how != "torch" and missing:  # torch has cross_attention only
            pytest.skip(missing[0].reason)
        if how == "torch":
            choose = registry.choose
            monkeypatch.setattr(
                registry,
                "choose",
                lambda op, b, *a: choose(op, how if op == "cross_attention" else b, *a),
            )
        else:
            monkeypatch.setattr(registry, "_forced", how)
    else:
        speedups = {
            "plain": Speedups.none(),
            "joint keys and values": Speedups(joint_keys_values=True),
        }
        monkeypatch.setattr(tdc.compressor.compressor, "Speedups", lambda: speedups[how])
    result = run.run_case(DATA, name)
    assert result.failures == []


def with_arrays(name: str, **arrays: np.ndarray) -> rec.Recording:
    case = rec.load(DATA, name)
    return replace(case, arrays={**case.arrays, **arrays})


def one(x: np.ndarray) -> np.ndarray:
    """1 at the seventh element, 0 elsewhere."""
    return (np.arange(x.size) == 7).reshape(x.shape).astype(x.dtype)


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("inputs_embeds_col4", lambda x: x + 2e-5 * one(x)),
        ("inputs_embeds_col4", lambda x: x[:, :-1]),
        ("logits", lambda x: np.where(one(x) > 0, np.nan, x)),
        ("seg_idx_0", lambda x: x + (np.arange(len(x)) == 1)),
        ("split_sizes", lambda x: x - 1),
        ("qf_input_ids", lambda x: x + 1),
    ],
)
def test_a_wrong_result_is_reported(monkeypatch, key, change):
    name = "c01c_T_S3"
    changed = with_arrays(name, **{key: change(rec.load(DATA, name).arrays[key])})
    monkeypatch.setattr(run, "load", lambda folder, name: changed)
    (failure,) = run.run_case(DATA, name).failures
    assert failure.startswith(key.replace("_col4", "").replace("seg_idx", "boundaries"))


@pytest.mark.parametrize("name", ["c01c_T_S3", "c02d_audio_subsampled", "c08_batch_train"])
def test_frames_are_found_without_a_note(name):
    case = rec.load(DATA, name)
    silent = replace(case, case={**case.case, "note": ""})
    assert rec.frame_rows(silent) == rec.frame_rows(case)


def test_a_note_that_contradicts_the_similarities_is_not_believed():
    case = rec.load(DATA, "c01c_T_S3")
    wrong = replace(case, case={**case.case, "note": "feats_T260[1:41]"})
    assert rec.frame_rows(wrong) == [list(range(40))]


def test_rows_of_images_come_from_the_note():
    case = rec.load(DATA, "c07_image_sq")
    sizes = [[500, 500], [640, 360]]
    for note, rows in (
        ("feats_P40[3], [7]", [[3], [7]]),
        ("feats_P40[4:6]", [[4], [5]]),
        ("", [[3], [3]]),
    ):
        images = replace(case, case={**case.case, "note": note, "image_sizes": sizes})
        assert rec.frame_rows(images) == rows


def test_waveforms_are_read_from_notes_and_windows():
    case = rec.load(DATA, "c02b_audio_short")

    def first_length(note: str, windows: list[int]) -> int:
        arrays = {**case.arrays, "beats_out_lens": np.array(windows)}
        changed = replace(case, case={**case.case, "note": note}, arrays=arrays)
        return len(next(rec._waveforms(changed, 0, 40)))

    assert first_length("wav[0:25.5 s]", [496]) == 408_000
    assert first_length("wav[:48000]", [496]) == 48_000  # more than the sound lasts: samples
    assert first_length("with 12.5 s of sound", [496]) == 200_000
    assert first_length("", [496, 496]) == 320_000
    # 34 time steps of 16 feature frames of 10 ms: between 5.455 and 5.614 s
    assert 400 + 160 * 543 <= first_length("", [272]) < 400 + 160 * 559


@torch.no_grad()
@pytest.mark.parametrize(("sounding", "expected"), [(0, [True, False]), (1, [False, True])])
def test_batch_with_sound_on_one_video_only(sounding, expected):
    """The released loop uses the last video's seconds for every video's sound."""
    batch, audio = rec.load(DATA, "c08_batch_train"), rec.load(DATA, "c02b_audio_short")
    kept = [40, 17]
    model = run.build_model(audio)
    wave = torch.from_numpy(rec.read_arrays(DATA, "wav.npz")["wav"].astype(np.float32))[:320_000]
    tokens = run.audio_tokens(
        model.video_encoder.beats,
        wave,
        alignment="release",
        taken=[1] * 17,  # the last video's, whichever has the sound
        num_frames=kept[sounding],
        half_precision=True,
    )[0]
    arrays = {**batch.arrays, "audio_frames_cols96": tokens[..., ::96].numpy()}
    case = {**batch.case, "note": "two videos: feats_T260[0:40], [100:117]; wav[0:20]"}
    overrides = {**case["config_overrides"], "audio_input": True}
    recording = replace(batch, arrays=arrays, case={**case, "config_overrides": overrides})
    encoded = run.encode(recording, model)
    lengths = torch.tensor(encoded.audio_lengths).split(kept)
    assert [bool(length.all()) for length in lengths] == expected
    assert [bool(length.any()) for length in lengths] == expected
    torch.testing.assert_close(encoded.audio.split(kept)[sounding], tokens)
    if sounding == 0:  # 17 seconds of the last video: the rest of the first is silent zeros
        assert not encoded.audio[17:40].any() and encoded.audio[16].any()


def test_prompt_without_placeholder_leaves_its_medium_out():
    recording = rec.load(DATA, "c08_batch_train")
    ids = recording.arrays["input_ids"].copy()
    ids[0][ids[0] == -200] = 5
    changed = replace(recording, arrays={**recording.arrays, "input_ids": ids})
    encoded = run.encode(changed, run.build_model(changed))
    assert encoded.cu_frames == (0, 17)


def test_command_says_what_is_missing(tmp_path, capsys):
    assert run.main(str(tmp_path)) == 2
    assert "no recordings" in capsys.readouterr().err
    (tmp_path / "c01_x.npz").write_bytes(b"")
    assert run.main(str(tmp_path)) == 1
    assert "ERROR" in capsys.readouterr().out

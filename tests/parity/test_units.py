# SPDX-License-Identifier: Apache-2.0
"""Recordings of single steps: frame budget, question tokens, segmentation, greedy answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import recording as rec
import run
import torch
from transformers import BertTokenizer

from tdc.config import RELEASE_BEHAVIOUR, TDCConfig
from tdc.encoder.segment import segment
from tdc.encoder.tower_features import TowerFeatures
from tdc.processor.budget import frame_budget
from tdc_kernels import anchor_queries

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def units():
    with np.load(DATA / "units.npz") as archive:
        return dict(archive)


def test_frame_budget(units):
    table = units["budget_table"].tolist()
    assert len(table) == 96
    for length, text, queries, audio, static, frames in table:
        config = TDCConfig(
            **RELEASE_BEHAVIOUR,
            audio_config={"encoder_layers": 1} if audio else None,
            max_context_length=length,
            num_context_tokens=queries,
            static_frames=bool(static),
            max_frames=10**6,  # the table was recorded without the cap of 224
        )
        assert frame_budget(config, text) == frames
        config.max_frames = 224
        assert frame_budget(config, text) == min(frames, 224)


def test_question_tokens(units):
    prompts = rec.read_json(DATA, "cases.json")["unit_prompts"]
    tokenizer = BertTokenizer(vocab=rec.vocabulary(DATA))
    for number, prompt in enumerate(prompts):
        ids = tokenizer(prompt, truncation=True, max_length=256).input_ids
        assert ids == units[f"tok_{number}"].tolist()


def test_pooling_bins(units):
    names = [name for name in units if name.startswith("pool")]
    assert len(names) == 19
    for name in names:
        length, bins = (int(part) for part in name.split("_")[1:])
        matrix = anchor_queries(torch.eye(length)[None], bins)[0]
        torch.testing.assert_close(matrix, torch.from_numpy(units[name]), rtol=0, atol=1e-7)


def test_batch_segmentation(units):
    _, dino = rec.features(rec.load(DATA, "c08_batch_train"))
    sizes = units["direct_batch_split"].tolist()
    rows = [*range(40), *range(100, 117)]
    cuts = segment(dino[rows], 4, [0, sizes[0], sum(sizes)])
    for video in range(2):
        recorded = (units[f"direct_batch_seg{video}"] + 1).tolist()
        assert cuts.scene_starts(video) == [0, *recorded]


@pytest.mark.parametrize(
    ("ids", "case", "is_video"), [("gen_ids", "c01c_T_S3", True), ("gen_ids_image", "", False)]
)
def test_greedy_answers(units, ids, case, is_video):
    recording = rec.load(DATA, "c01c_T_S3")
    model = run.build_model(recording)
    if is_video:
        encoded = run.encode(recording, model)
    else:
        siglip, dino = rec.features(recording)
        image = TowerFeatures(siglip[3:4], dino[3:4], (640, 360), is_video=False)
        encoded = model.video_encoder.connect([image])
    question, mask = run.question_ids(recording)
    answer = model.generate(
        torch.from_numpy(recording.arrays["input_ids"]),
        features=encoded,
        question_ids=question,
        question_mask=mask,
        do_sample=False,
        max_new_tokens=8,
    )
    assert answer.tolist() == units[ids].tolist()

# SPDX-License-Identifier: Apache-2.0
"""The Q-Former against transformers' own (InstructBLIP's), with the same weights."""

from __future__ import annotations

import pytest
import torch
from toy import QFORMER
from transformers import BertConfig, InstructBlipQFormerConfig, InstructBlipQFormerModel

from tdc.compressor.frame_tokens import FrameTokens
from tdc.compressor.qformer import QFormer

WIDTH = 20  # of the frame tokens
ROWS, QUERIES, VISUAL, AUDIO, TEXT = 5, 3, 7, 4, 6
LAYER = {
    "attention.attention.query": "attention.query",
    "attention.attention.key": "attention.key",
    "attention.attention.value": "attention.value",
    "attention.output.dense": "attention.out",
    "attention.output.LayerNorm": "attention.norm",
    "crossattention.attention.query": "cross_attention.query",
    "crossattention.attention.key": "cross_attention.key",
    "crossattention.attention.value": "cross_attention.value",
    "crossattention.output.dense": "cross_attention.out",
    "crossattention.output.LayerNorm": "cross_attention.norm",
    "intermediate.dense": "ffn_text.up",
    "output.dense": "ffn_text.down",
    "output.LayerNorm": "ffn_text.norm",
    "intermediate_query.dense": "ffn_query.up",
    "output_query.dense": "ffn_query.down",
    "output_query.LayerNorm": "ffn_query.norm",
}


def randomise(module: torch.nn.Module) -> None:
    """Weights large enough that every layer bends the result, norms and biases included."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.4 * torch.randn_like(parameter) + (parameter.dim() == 1))


def our_name(name: str) -> str:
    name = name.replace("embeddings.layernorm", "embeddings_norm").removeprefix("embeddings.")
    if name.startswith("encoder.layer."):
        _, _, number, rest = name.split(".", 3)
        module, kind = rest.rsplit(".", 1)
        return f"layers.{number}.{LAYER[module]}.{kind}"
    return name


@pytest.fixture
def pair() -> tuple[QFormer, InstructBlipQFormerModel]:
    """Ours and theirs in fp64; layers 0, 2 of 3 have cross-attention."""
    ours = QFormer(BertConfig(**QFORMER), WIDTH, cross_attention_every=2)
    theirs = InstructBlipQFormerModel(
        InstructBlipQFormerConfig(**QFORMER, encoder_hidden_size=WIDTH, cross_attention_frequency=2)
    )
    randomise(theirs)
    state = {our_name(k): v for k, v in theirs.state_dict().items() if "position_ids" not in k}
    ours.load_state_dict(state)  # strict: neither has a weight that the other lacks
    return ours.double().eval(), theirs.double().eval()


def inputs() -> dict[str, torch.Tensor]:
    return {
        "queries": torch.randn(ROWS, QUERIES, 16).double(),
        "visual": torch.randn(ROWS, VISUAL, WIDTH).double(),
        "audio": torch.randn(ROWS, AUDIO, WIDTH).double(),
        "question_ids": torch.randint(5, 80, (ROWS, TEXT)),
    }


def test_layers_with_cross_attention():
    every = QFormer(BertConfig(**QFORMER), WIDTH, cross_attention_every=1)
    second = QFormer(BertConfig(**QFORMER), WIDTH)
    assert [layer.cross_attention is not None for layer in every.layers] == [True] * 3
    assert [layer.cross_attention is not None for layer in second.layers] == [True, False, True]


@torch.no_grad()
@pytest.mark.parametrize("audio", [True, False])
@pytest.mark.parametrize("padded", [True, False])
def test_equals_transformers(pair, audio, padded):
    ours, theirs = pair
    x = inputs()
    frame = torch.cat([x["visual"], x["audio"]], 1) if audio else x["visual"]
    mask = torch.ones(ROWS, TEXT, dtype=torch.bool)
    if padded:
        mask[1, 4:] = mask[3, 2:] = False
    expected = theirs(
        x["question_ids"],
        attention_mask=torch.cat([torch.ones(ROWS, QUERIES), mask], 1),
        query_embeds=x["queries"],
        encoder_hidden_states=frame,
    ).last_hidden_state[:, :QUERIES]
    got = ours(
        x["queries"],
        FrameTokens(x["visual"], x["audio"] if audio else None),
        question_ids=x["question_ids"],
        question_mask=mask if padded else None,
    )
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@torch.no_grad()
def test_index_and_lengths_choose_a_frames_valid_tokens(pair):
    ours, _ = pair
    x = inputs()
    index = torch.tensor([4, 0, 0, 2, 1], dtype=torch.int32)
    visual_lengths = torch.tensor([7, 3, 5, 7, 1], dtype=torch.int32)
    audio_lengths = torch.tensor([4, 0, 2, 4, 0], dtype=torch.int32)
    got = ours(
        x["queries"],
        FrameTokens(x["visual"], x["audio"], index, visual_lengths, audio_lengths),
        question_ids=x["question_ids"],
    )
    for row, frame in enumerate(index.tolist()):
        alone = ours(
            x["queries"][row : row + 1],
            FrameTokens(
                x["visual"][frame : frame + 1, : visual_lengths[frame]],
                x["audio"][frame : frame + 1, : audio_lengths[frame]],
            ),
            question_ids=x["question_ids"][row : row + 1],
        )
        torch.testing.assert_close(got[row : row + 1], alone, rtol=0, atol=1e-12)


@torch.no_grad()
def test_padding_of_the_question_changes_nothing(pair):
    ours, _ = pair
    x = inputs()
    short = ours(x["queries"], FrameTokens(x["visual"]), question_ids=x["question_ids"])
    padding = torch.randint(5, 80, (ROWS, 9))
    mask = torch.arange(TEXT + 9).expand(ROWS, -1) < TEXT
    ids = torch.cat([x["question_ids"], padding], 1)
    padded = ours(x["queries"], FrameTokens(x["visual"]), question_ids=ids, question_mask=mask)
    torch.testing.assert_close(padded, short, rtol=0, atol=1e-12)
    unmasked = ours(x["queries"], FrameTokens(x["visual"]), question_ids=ids)
    assert (unmasked - short).abs().max() > 1e-3  # the mask is what hides the padding


@torch.no_grad()
def test_question_and_frame_both_matter(pair):
    ours, _ = pair
    x = inputs()
    first = ours(x["queries"], FrameTokens(x["visual"]), question_ids=x["question_ids"])
    other_question = ours(
        x["queries"], FrameTokens(x["visual"]), question_ids=x["question_ids"].flip(1)
    )
    other_frame = ours(
        x["queries"], FrameTokens(x["visual"].flip(0)), question_ids=x["question_ids"]
    )
    none = ours(x["queries"], FrameTokens(x["visual"]))
    for other in (other_question, other_frame, none):
        assert other.shape == (ROWS, QUERIES, 16)
        assert (other - first).abs().max() > 1e-3

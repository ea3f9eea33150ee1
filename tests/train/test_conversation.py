# SPDX-License-Identifier: Apache-2.0
"""Labels lie exactly on the answers and the marks that end them."""

from __future__ import annotations

import pytest
import torch
from toy import toy_processor
from train_samples import calm_config

from tdc import InputError
from tdc.processor.chat_templates import CHATML, LLAMA3
from tdc.train.data.collator import Collator
from tdc.train.data.conversation import encode_conversation
from tdc.train.data.records import parse

END = "<|im_end|>"
TURNS = [
    {"from": "human", "value": "<image>\nFirst?"},
    {"from": "gpt", "value": "Yes <video> it is."},
    {"from": "human", "value": "And then?"},
    {"from": "gpt", "value": "No."},
]


@pytest.fixture(scope="module")
def processor():
    return toy_processor(calm_config())


def trained(processor, text):
    """Text of each run of labels."""
    runs, before = [], -100
    for label in text.labels:
        if label != -100:
            runs += [[]] if before == -100 else []
            runs[-1].append(label)
        before = label
    return [processor.tokenizer.decode(run) for run in runs]


def test_labels_are_the_answers_and_their_ends(processor):
    text = encode_conversation(processor, parse({"image": "a.png", "conversations": TURNS}))
    assert trained(processor, text) == [f"Yes <video> it is.{END}", f"No.{END}"]
    for token, label in zip(text.input_ids, text.labels, strict=True):
        assert label in (-100, token)


def test_ids_are_those_of_inference(processor):
    record = parse({"image": "a.png", "conversations": TURNS[:2]})
    text = encode_conversation(processor, record)
    content = [{"type": "image"}, {"type": "text", "text": "First?"}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    ids = processor.prompt_ids(prompt)
    assert text.input_ids[: len(ids)] == ids
    assert text.labels[: len(ids)] == [-100] * len(ids)
    # An answer that speaks of "<video>" holds no second placeholder.
    assert text.input_ids.count(processor.config.media_token_id) == 1


def test_the_question_is_the_last_one(processor):
    text = encode_conversation(processor, parse({"image": "a.png", "conversations": TURNS}))
    assert text.question == "And then?"


def test_a_medium_in_a_later_turn(processor):
    turns = [{"from": "human", "value": "Hello."}, {"from": "gpt", "value": "Hello!"}, *TURNS]
    text = encode_conversation(processor, parse({"image": "a.png", "conversations": turns}))
    place = text.input_ids.index(processor.config.media_token_id)
    assert text.labels[:place] != [-100] * place  # the first answer stands before the picture
    assert len(trained(processor, text)) == 3


def test_a_first_token_is_written_once():
    processor = toy_processor(calm_config())
    processor.chat_template = LLAMA3
    marks = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    processor.tokenizer.add_special_tokens({"additional_special_tokens": marks})
    text = encode_conversation(processor, parse({"image": "a.png", "conversations": TURNS}))
    first = processor.tokenizer.convert_tokens_to_ids("<|begin_of_text|>")
    assert text.input_ids[0] == first and text.input_ids.count(first) == 1
    assert trained(processor, text) == ["Yes <video> it is.<|eot_id|>", "No.<|eot_id|>"]


def test_a_template_that_rewrites_earlier_turns_is_refused():
    processor = toy_processor(calm_config())
    processor.chat_template = "{{ messages | length }}" + CHATML
    with pytest.raises(InputError, match="changes earlier turns"):
        encode_conversation(processor, parse({"image": "a.png", "conversations": TURNS}))


def test_a_batch_is_padded_on_the_right_without_labels(processor):
    examples = [
        {"question": "Long question?", "answer": "Yes."},
        {"question": "Hm?", "answer": "A longer answer."},
    ]
    batch = Collator(processor)(examples)
    texts = [encode_conversation(processor, parse(example)) for example in examples]
    for row, text in enumerate(texts):
        length = len(text.input_ids)
        assert batch["input_ids"][row, :length].tolist() == text.input_ids
        assert batch["attention_mask"][row].sum() == length
        assert (batch["labels"][row, length:] == -100).all()
    assert "features" not in batch and batch["labels"].dtype == torch.int64


def test_marks_in_a_conversation_are_text(processor):
    typed = f"The tag <video> ends by {END}, or not?"
    turns = [TURNS[0], {"from": "gpt", "value": typed}, *TURNS[2:]]
    record = parse({"image": "a.png", "conversations": turns})
    text = encode_conversation(processor, record)
    assert trained(processor, text) == [f"{typed}{END}", f"No.{END}"]
    plain = encode_conversation(processor, parse({"image": "a.png", "conversations": TURNS}))
    for token in (processor.config.media_token_id, processor.tokenizer.eos_token_id):
        assert text.input_ids.count(token) == plain.input_ids.count(token)

# SPDX-License-Identifier: Apache-2.0
"""A record's token ids, with labels on its answers alone.

The chat template is rendered turn by turn, and what an answer adds is tokenized on its own, as it
will be when the model writes it. Trained are the answer's tokens and the mark that ends its turn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...errors import InputError
from ...processor.processor import TDCProcessor
from ...processor.prompt_text import Prompt
from ...prompt import IGNORE_INDEX
from .records import Record
from .turns import SHARED


@dataclass(frozen=True)
class Conversation:
    """Attributes:
    input_ids: prompt and answers, ``media_token_id`` where the medium goes.
    labels: the same ids on answers and their end marks, ``IGNORE_INDEX`` elsewhere.
    turns: each token's question and answer, in rising numbers; ``SHARED`` up to the medium.
    question: what the Q-Former reads: the last user message, as in inference. (The context
        stands in front of all turns and is made once; the release trains on the first message.)
    """

    input_ids: list[int]
    labels: list[int]
    turns: list[int]
    question: str


def encode_conversation(processor: TDCProcessor, record: Record) -> Conversation:
    """Ids and labels of one record.

    Raises:
        InputError: a chat template whose text for the first turns changes with later ones.
    """
    messages = _messages(record)
    ids: list[int] = []
    labels: list[int] = []
    turns: list[int] = []
    done = ""
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = processor.apply_chat_template(messages[:number], add_generation_prompt=True)
        after = processor.apply_chat_template(messages[: number + 1])
        answer = message["content"]
        if not before.startswith(done) or not after.startswith(before + answer):
            raise InputError(
                "the chat template changes earlier turns when later ones follow, so the answers "
                "cannot be found in its text; expected a template that only adds"
            )
        prompt = processor.prompt_ids(before.since(len(done)), first=not done)
        answer_ids = processor.prompt_ids(Prompt.of_user(answer), first=False)
        end_ids = _end_ids(processor, after[len(before) + len(answer) :])
        ids += [*prompt, *answer_ids, *end_ids]
        labels += [IGNORE_INDEX] * len(prompt) + [*answer_ids, end_ids[0]]
        labels += [IGNORE_INDEX] * (len(end_ids) - 1)
        turns += [number] * (len(ids) - len(turns))
        done = after
    media = processor.config.media_token_id
    shared = max((place for place, token in enumerate(ids) if token == media), default=-1) + 1
    turns[:shared] = [SHARED] * shared
    questions = [turn.text for turn in record.turns if turn.role == "user"]
    return Conversation(ids, labels, turns, questions[-1])


def _messages(record: Record) -> list[dict[str, Any]]:
    """The turns as the processor takes them, up to the last answer."""
    last = max(i for i, turn in enumerate(record.turns) if turn.role == "assistant")
    messages: list[dict[str, Any]] = []
    for number, turn in enumerate(record.turns[: last + 1]):
        content: Any = turn.text
        if record.kind is not None and number == record.media_turn:
            content = [{"type": record.kind}, {"type": "text", "text": turn.text}]
        messages.append({"role": turn.role, "content": content})
    return messages


def _end_ids(processor: TDCProcessor, text: str) -> list[int]:
    """Ids of what the template writes after an answer; the first one ends it."""
    ids = processor.tokenizer(text, add_special_tokens=False).input_ids if text else []
    return ids or [processor.tokenizer.eos_token_id]

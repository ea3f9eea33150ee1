# SPDX-License-Identifier: Apache-2.0
"""``generate``: greedy, sampling, beams, streaming, its configuration."""

from __future__ import annotations

import torch
from toy import toy_inputs, toy_model


@torch.no_grad()
def test_greedy_decoding_is_the_argmax_of_forward(model, processor):
    inputs = toy_inputs(processor)
    prompt = model.prepare_prompt(**inputs)
    answer = model.generate(**inputs, do_sample=False, max_new_tokens=5, eos_token_id=None)
    embeds, expected = prompt.inputs_embeds, []
    for _ in range(5):
        token = model(inputs_embeds=embeds).logits[:, -1].argmax(-1)
        expected.append(token.item())
        embeds = torch.cat([embeds, model.get_input_embeddings()(token)[:, None]], 1)
    assert answer.tolist() == [expected]
    assert len(set(expected)) > 1


def test_sampling_follows_the_seed(model, processor):
    inputs = toy_inputs(processor)

    def sample(seed: int) -> list:
        torch.manual_seed(seed)
        options = {"do_sample": True, "temperature": 2.0, "top_k": 0, "eos_token_id": None}
        return model.generate(**inputs, max_new_tokens=12, **options).tolist()

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


def test_streamer_gets_every_token_as_it_comes(model, processor):
    class Collector:
        def __init__(self) -> None:
            self.pieces, self.ended = [], False

        def put(self, value: torch.Tensor) -> None:
            self.pieces.append(value.flatten().tolist())

        def end(self) -> None:
            self.ended = True

    streamer = Collector()
    answer = model.generate(
        **toy_inputs(processor),
        do_sample=False,
        max_new_tokens=4,
        eos_token_id=None,
        streamer=streamer,
    )
    tokens = [t for piece in streamer.pieces for t in piece]
    assert tokens[-4:] == answer[0].tolist() and streamer.ended
    assert len(streamer.pieces) >= 4


def test_generation_config_counts(processor):
    model, inputs = toy_model(), toy_inputs(processor)
    model.generation_config.max_new_tokens = 3
    model.generation_config.eos_token_id = None
    assert model.generate(**inputs).shape == (1, 3)
    assert model.generate(**inputs, max_new_tokens=2).shape == (1, 2)


def test_generation_stops_at_eos_and_takes_beams(model, processor):
    inputs = toy_inputs(processor)
    free = model.generate(**inputs, do_sample=False, max_new_tokens=6, eos_token_id=None)[0]
    stop = free[2].item()
    stopped = model.generate(**inputs, do_sample=False, max_new_tokens=6, eos_token_id=stop)[0]
    first = free.tolist().index(stop)
    assert stopped.tolist() == free[: first + 1].tolist()
    beams = model.generate(**inputs, num_beams=3, do_sample=False, max_new_tokens=4)
    assert beams.shape[0] == 1 and beams.shape[1] <= 4

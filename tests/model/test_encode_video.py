# SPDX-License-Identifier: Apache-2.0
"""``encode_video``: what it takes, and when a graph is kept."""

from __future__ import annotations

import pytest
import torch
from toy import toy_inputs, toy_model

from tdc.processor.media_inputs import MEDIA_INPUTS


def test_the_processors_whole_output(model, processor):
    inputs = toy_inputs(processor)
    assert set(inputs) == set(processor.model_input_names)
    media = {name: inputs[name] for name in MEDIA_INPUTS}
    whole, alone = model.encode_video(**inputs), model.encode_video(**media)
    assert torch.equal(whole.visual.values, alone.visual.values)
    assert torch.equal(whole.audio, alone.audio)


def test_other_keywords_are_named(model, processor):
    with pytest.raises(TypeError, match="pixel_values"):
        model.encode_video(**toy_inputs(processor), pixel_values=None)
    with pytest.raises(TypeError, match="siglip_pixels"):
        model.encode_video(**processor(text="No picture."))


def tensors(features):
    return [*features.visual.tensors(), features.audio, *features.images]


def test_a_model_that_answers_keeps_no_graph(processor):
    """As it comes from ``from_pretrained``: its parameters would take gradients."""
    model = toy_model()
    assert all(p.requires_grad for p in model.parameters())
    features = model.encode_video(**toy_inputs(processor))
    assert not any(x.requires_grad for x in tensors(features))


def test_an_input_may_want_a_gradient(processor):
    model, inputs = toy_model().requires_grad_(False), toy_inputs(processor)
    for name in ("siglip_pixels", "dinov2_pixels"):
        pixels = (inputs[name].float() / 255).requires_grad_()
        features = model.encode_video(**{**inputs, name: pixels})
        features.visual.final().square().sum().backward()
        assert pixels.grad.abs().max() > 0
    waves = inputs["waveforms"].clone().requires_grad_()
    model.encode_video(**{**inputs, "waveforms": waves}).audio.sum().backward()
    assert waves.grad.abs().max() > 0


@pytest.mark.parametrize("trained", ["nothing", "connector", "beats", "everything"])
def test_training_keeps_the_graph_of_what_trains(processor, trained, monkeypatch):
    model = toy_model().train()
    encoder = model.video_encoder
    if trained != "everything":
        model.requires_grad_(False)
        if trained != "nothing":
            getattr(encoder, trained).requires_grad_(True)
    seen = {}
    for name in ("siglip", "dinov2", "beats", "connector"):
        module, forward = getattr(encoder, name), getattr(encoder, name).forward

        def spy(*args, name=name, forward=forward, **kwargs):
            seen[name] = torch.is_grad_enabled()
            return forward(*args, **kwargs)

        monkeypatch.setattr(module, "forward", spy)
    features = model.encode_video(**toy_inputs(processor))
    everything = trained == "everything"
    assert seen == {name: everything or name == trained for name in seen} and len(seen) == 4
    assert features.visual.values.requires_grad == (trained in ("connector", "everything"))
    assert features.audio.requires_grad == (trained in ("beats", "everything"))


def test_the_loss_reaches_the_encoder_of_a_model_in_eval_mode(processor):
    """The forward pass leaves the choice to autograd."""
    model, inputs = toy_model(), toy_inputs(processor)
    model(**inputs, labels=inputs["input_ids"].clamp(min=0)).loss.backward()
    assert model.video_encoder.connector.query.grad.abs().max() > 0

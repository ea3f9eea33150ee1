# SPDX-License-Identifier: Apache-2.0
"""What the op does not do runs the original forward, to the bit, and says why."""

from __future__ import annotations

import copy

import pytest
import torch
from qformers import (
    CROSS,
    DEPTH,
    FAMILIES,
    FRAMES,
    NAMES,
    QUERIES,
    TOKENS,
    WIDTH,
    additive,
    attentions,
    qformer,
    runner,
)  # fmt: skip
from torch import nn
from torch.nn.utils import parametrizations, prune

import tdc_kernels as tk

pytestmark = pytest.mark.usefixtures("torch_backend")


class LoRA(nn.Module):
    """The usual wrapper: the base layer and a small product beside it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.in_features, self.out_features = base.in_features, base.out_features
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)

    @property
    def weight(self) -> torch.Tensor:
        return self.base.weight  # as such wrappers do; reading it bypasses them

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.up(self.down(x))


class MergedLinear(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def merged(layer: nn.Linear) -> nn.Linear:
    layer.__class__ = MergedLinear
    return layer


def own_forward(layer: nn.Linear) -> nn.Linear:
    layer.forward = lambda x: 3 * nn.Linear.forward(layer, x)
    return layer


def hooked(layer: nn.Linear, kind: str) -> nn.Linear:
    if kind == "pre":
        layer.register_forward_pre_hook(lambda module, args: (2 * args[0],))
    elif kind == "after":
        layer.register_forward_hook(lambda module, args, out: out + 1)
    else:
        layer.register_full_backward_hook(lambda module, grad_in, grad_out: None)
    return layer


CHANGES = {
    "LoRA": (LoRA, "is not a plain nn.Linear but LoRA"),
    "subclass": (merged, "is not a plain nn.Linear but MergedLinear"),
    "parametrized": (parametrizations.weight_norm, "is not a plain nn.Linear but Parametrized"),
    "pruned": (lambda m: prune.random_unstructured(m, "weight", 0.5), "has hooks"),
    "pre-hook": (lambda m: hooked(m, "pre"), "has hooks"),
    "hook": (lambda m: hooked(m, "after"), "has hooks"),
    "backward hook": (lambda m: hooked(m, "backward"), "has hooks"),
    "own forward": (own_forward, "has hooks or a forward of its own"),
}


@pytest.mark.parametrize("layer", ["key", "value"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("family", ["instructblip_video", "lavis"])
def test_a_layer_that_must_be_called(family, change, layer):
    model, run = qformer(family), runner(family, masked=True)
    names = [name for name, _ in attentions(model)]
    acceleration = tk.accelerate(model)
    do, reason = CHANGES[change]
    first = model.get_submodule(names[0])
    setattr(first, layer, do(getattr(first, layer)))
    ours = run(model)
    assert [x.name for x in acceleration.fallbacks] == names[:1]
    assert reason in acceleration.fallbacks[0].reason
    assert acceleration.fallbacks[0].reason.startswith(layer)
    acceleration.undo()
    torch.testing.assert_close(ours, run(model))
    # Beforehand: that one is left alone, the other one not.
    again = tk.accelerate(model)
    assert [x.name for x in again.skipped] == names[:1]
    assert reason in again.skipped[0].reason
    assert [x.name for x in again.replaced] == names[1:]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("family", ["instructblip_video", "lavis"])
def test_the_query_layer_is_called_whatever_it_is(family, change):
    model, run = qformer(family), runner(family)
    first = attentions(model)[0][1]
    first.query = CHANGES[change][0](first.query)
    plain = run(model)
    acceleration = tk.accelerate(model)
    assert len(acceleration.replaced) == CROSS
    torch.testing.assert_close(run(model), plain)
    assert not acceleration.fallbacks


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_in_training(family):
    model = qformer(family, attention_probs_dropout_prob=0.4).train()
    run, plain = runner(family), copy.deepcopy(model)
    acceleration = tk.accelerate(model)
    torch.manual_seed(1)
    wanted = run(plain)
    torch.manual_seed(1)
    assert torch.equal(run(model), wanted)  # the same draws: nothing else took any
    assert {x.reason for x in acceleration.fallbacks} == {"dropout is active"}
    before = len(acceleration.fallbacks)
    run(model.eval())
    assert len(acceleration.fallbacks) == before == CROSS


@pytest.mark.parametrize("family", list(NAMES))
def test_attention_weights_of_transformers(family):
    model, run = qformer(family), runner(family)
    plain = copy.deepcopy(model)
    acceleration = tk.accelerate(model)
    out = []

    def seen(model: nn.Module) -> tuple[torch.Tensor, ...]:
        model.register_forward_hook(lambda module, args, output: out.append(output))
        run(model, output_attentions=True)
        return out.pop().cross_attentions

    wanted, found = seen(plain), seen(model)
    assert len(found) == CROSS
    assert all(map(torch.equal, found, wanted))
    assert {x.reason for x in acceleration.fallbacks} == {"output_attentions is given"}
    # transformers leaves its recorder on the modules: they are served again nevertheless.
    acceleration.undo()
    again = tk.accelerate(model)
    run(model)
    assert len(again.replaced) == CROSS
    assert not again.fallbacks
    model.config.output_attentions = True
    model.register_forward_hook(lambda module, args, output: out.append(output))
    run(model)
    assert all(map(torch.equal, out.pop().cross_attentions, wanted))
    assert {x.reason for x in again.fallbacks} == {"output_attentions is set in its configuration"}


def lavis_attention() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    module = attentions(qformer("lavis"))[0][1]
    return module, torch.randn(FRAMES, QUERIES, WIDTH), torch.randn(FRAMES, TOKENS, DEPTH)


GIVEN = {
    "output_attentions": True,
    "head_mask": torch.tensor([1.0, 0.0, 1.0])[:, None, None],
    "past_key_value": (torch.randn(FRAMES, 3, 2, 8), torch.randn(FRAMES, 3, 2, 8)),
}


def same(one, other) -> bool:
    """Whether two outputs, tuples in tuples, are equal to the bit."""
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other)


@pytest.mark.parametrize("name", GIVEN)
def test_arguments_of_lavis(name):
    module, x, tokens = lavis_attention()
    wanted = module(x, None, encoder_hidden_states=tokens, **{name: GIVEN[name]})
    acceleration = tk.accelerate(module)
    found = module(x, None, encoder_hidden_states=tokens, **{name: GIVEN[name]})
    assert same(found, wanted)
    assert [x.reason for x in acceleration.fallbacks] == [f"{name} is given"]


def test_by_position_as_by_name():
    module, x, tokens = lavis_attention()
    mask = additive(torch.arange(TOKENS) < torch.tensor([7, 4, 1])[:, None])
    plain = module(x, None, None, tokens, mask)
    acceleration = tk.accelerate(module)
    ours = module(x, None, None, tokens, mask)
    torch.testing.assert_close(ours[0], plain[0])
    assert not acceleration.fallbacks
    # (context, (keys, values)) before; nobody computed keys and values, nobody is told other ones.
    assert ours[1:] == (None,)
    assert same(module(x, None, None, tokens, mask, None, True)[1:][1], plain[1])
    with pytest.raises(TypeError, match="positional arguments"):
        module(x, None, None, tokens, mask, None, False, "one too many")
    with pytest.raises(TypeError):
        module(encoder_hidden_states=tokens)


def test_weights_that_are_saved_and_relative_positions():
    module, x, tokens = lavis_attention()
    acceleration = tk.accelerate(module)
    module.save_attention = True
    wanted = type(module)._tdc_class.forward(module, x, encoder_hidden_states=tokens)
    del module.attention_map
    assert same(module(x, encoder_hidden_states=tokens), wanted)
    assert module.attention_map.shape == (FRAMES, 3, QUERIES, TOKENS)
    assert [x.reason for x in acceleration.fallbacks] == ["save_attention is set"]

    model = qformer("lavis", position_embedding_type="relative_key")
    acceleration = tk.accelerate(model)
    assert not acceleration.replaced
    assert {x.reason for x in acceleration.skipped} == {"position_embedding_type is 'relative_key'"}


def test_self_attention_by_a_served_class_says_nothing():
    module, x, _ = lavis_attention()
    module.key, module.value = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
    acceleration = tk.accelerate(module)
    plain = type(module)._tdc_class.forward(module, x)
    assert same(module(x), plain)
    assert not acceleration.fallbacks


def test_a_hook_on_the_attention_gets_what_it_got():
    model, run = qformer("blip2"), runner("blip2")
    acceleration = tk.accelerate(model)
    weights = []
    first = attentions(model)[0][1]
    handle = first.register_forward_hook(lambda module, args, out: weights.append(out[1]))
    run(model)
    assert weights[0].shape == (FRAMES, 3, QUERIES, TOKENS)
    assert len(acceleration.fallbacks) == 1
    assert "a forward hook on it" in acceleration.fallbacks[0].reason
    handle.remove()
    everywhere = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        run(model)
    finally:
        everywhere.remove()
    assert len(acceleration.fallbacks) == 1 + CROSS


def test_training_where_the_original_is_as_fast():
    """Left to itself the op would take PyTorch's own way there, so nothing can be gained."""
    module, x, tokens = lavis_attention()
    wanted = module(x, encoder_hidden_states=tokens)
    acceleration = tk.accelerate(module)
    with tk.use_backend("auto"):
        assert same(module(x, encoder_hidden_states=tokens), wanted)
        assert "a gradient is wanted" in acceleration.fallbacks[0].reason
        large = torch.randn(2, 400, DEPTH)  # for two queries: absorbing pays in training too
        acceleration.undo()
        acceleration = tk.accelerate(module)
        module(x[:2, :2], encoder_hidden_states=large)
        with torch.no_grad():
            module(x, encoder_hidden_states=tokens)
        module.requires_grad_(False)
        module(x, encoder_hidden_states=tokens)
    assert not acceleration.fallbacks


QUERY_WISE = torch.zeros(FRAMES, 1, QUERIES, TOKENS)
QUERY_WISE[:, :, 1, 2] = -1e4
REFUSED_MASKS = {
    "weighs tokens instead of hiding": torch.full((FRAMES, 1, 1, TOKENS), -0.5),
    "differs between queries": QUERY_WISE,
    "is not [F, 1, 1 or Q, N]": torch.zeros(FRAMES, 3, 1, TOKENS),
    "is not a tensor without gradient": torch.zeros(FRAMES, 1, 1, TOKENS, requires_grad=True),
    "is boolean": torch.ones(FRAMES, 1, 1, TOKENS, dtype=torch.bool),
    "is neither bool nor floating": torch.zeros(FRAMES, 1, 1, TOKENS, dtype=torch.long),
}


@pytest.mark.parametrize("reason", REFUSED_MASKS)
def test_masks_that_say_more_than_seen_or_not(reason):
    module, x, tokens = lavis_attention()
    given = {"encoder_hidden_states": tokens, "encoder_attention_mask": REFUSED_MASKS[reason]}
    wanted = module(x, **given)
    acceleration = tk.accelerate(module)
    assert same(module(x, **given), wanted)
    assert len(acceleration.fallbacks) == 1
    assert reason in acceleration.fallbacks[0].reason


@pytest.mark.parametrize("form", ["one for all", "expanded", "per query", "-inf", "-10000"])
def test_masks_that_are_served(form):
    module, x, tokens = lavis_attention()
    mask = additive(torch.arange(TOKENS) < torch.tensor([7, 4, 1])[:, None])
    if form == "one for all":
        mask = mask[1:2]
    elif form == "expanded":
        mask = mask.expand(-1, -1, QUERIES, -1)
    elif form == "per query":
        mask = mask.expand(-1, -1, QUERIES, -1).contiguous()
    elif form == "-inf":
        mask = mask.masked_fill(mask < 0, float("-inf"))
    else:
        mask = mask.clamp_min(-10000.0)
    given = {"encoder_hidden_states": tokens, "encoder_attention_mask": mask}
    plain = module(x, **given)[0]
    acceleration = tk.accelerate(module)
    torch.testing.assert_close(module(x, **given)[0], plain)
    assert not acceleration.fallbacks


def test_a_frame_without_a_token_gives_zeros():
    """The original spreads its attention over the hidden tokens then; documented."""
    module, x, tokens = lavis_attention()
    mask = additive(torch.arange(TOKENS) < torch.tensor([7, 0, 1])[:, None])
    plain = module(x, encoder_hidden_states=tokens, encoder_attention_mask=mask)[0]
    tk.accelerate(module)
    ours = module(x, encoder_hidden_states=tokens, encoder_attention_mask=mask)[0]
    assert not ours[1].any()
    assert plain[1].all()
    torch.testing.assert_close(ours[[0, 2]], plain[[0, 2]])


def test_an_attention_implementation_of_the_users_own():
    from transformers import AttentionInterface

    def zero(module, query, key, value, attention_mask, **kwargs):
        return torch.zeros_like(query).transpose(1, 2), None

    AttentionInterface.register("zero", zero)
    model = qformer("blip2", "zero")
    acceleration = tk.accelerate(model)
    assert {x.reason for x in acceleration.skipped} == {
        "its attention implementation is 'zero'",
    }
    later = qformer("blip2")
    acceleration = tk.accelerate(later)
    later.config._attn_implementation = "zero"
    runner("blip2")(later)
    assert len(acceleration.fallbacks) == CROSS


@pytest.mark.parametrize("kind", ["fewer frames", "no tokens"])
def test_shapes_of_no_use(kind):
    module, x, tokens = lavis_attention()
    tokens = tokens[:1] if kind == "fewer frames" else tokens[:, :0]
    wanted = module(x, encoder_hidden_states=tokens)
    acceleration = tk.accelerate(module)
    assert same(module(x, encoder_hidden_states=tokens), wanted)
    assert len(acceleration.fallbacks) == 1

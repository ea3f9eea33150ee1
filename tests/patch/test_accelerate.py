# SPDX-License-Identifier: Apache-2.0
"""The same numbers before and after, from one attention to whole models that generate."""

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
from tolerance import judge
from torch import nn

import tdc_kernels as tk

MASKS = {
    "none": None,
    "all": torch.ones(FRAMES, TOKENS, dtype=torch.bool),
    "some": torch.arange(TOKENS) < torch.tensor([7, 4, 1])[:, None],
}


def outputs_and_gradients(module: nn.Module, dtype: torch.dtype, mask: str, x, tokens, grad):
    module = copy.deepcopy(module).to(dtype)
    x, tokens = (y.to(dtype).requires_grad_() for y in (x, tokens))
    visible = MASKS[mask]
    out = module(
        x,
        encoder_hidden_states=tokens,
        encoder_attention_mask=None if visible is None else additive(visible).to(dtype),
    )[0]
    inputs = {"x": x, "tokens": tokens, **dict(module.named_parameters())}
    grads = torch.autograd.grad(out, list(inputs.values()), grad.to(dtype))
    return {"out": out.detach(), **dict(zip(inputs, grads, strict=True))}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_one_attention_and_all_its_gradients(family, mask, backend):
    module = attentions(qformer(family))[0][1]
    data = torch.randn(FRAMES, QUERIES, WIDTH), torch.randn(FRAMES, TOKENS, DEPTH)
    data = (*data, torch.randn(FRAMES, QUERIES, WIDTH))
    exact, plain = (
        outputs_and_gradients(module, dtype, mask, *data)
        for dtype in (torch.float64, torch.float32)
    )

    class Same(type(module)):  # deepcopy gives a plain module back: this one is served as a class
        pass

    module.__class__ = Same
    with tk.accelerate(Same) as acceleration:
        ours = outputs_and_gradients(module, torch.float32, mask, *data)
        assert not acceleration.fallbacks
    # A key bias adds one number to all of a query's scores: its gradient is 0, theirs is noise.
    assert ours.pop("key.bias").abs().max() <= 1e-5
    for name in ours:
        judge(ours[name], plain[name], exact[name])


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_whole_qformer(family, masked, implementation):
    model, run = qformer(family, implementation), runner(family, masked)
    exact, plain = run(copy.deepcopy(model).double()), run(model)
    acceleration = tk.accelerate(model)
    assert [x.name for x in acceleration.replaced] == [name for name, _ in attentions(model)]
    assert len(acceleration.replaced) == CROSS
    assert not acceleration.skipped
    ours = run(model)
    assert not acceleration.fallbacks
    judge(ours, plain, exact)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_every_accelerated_attention_calls_the_op(family, monkeypatch):
    calls = []

    def counted(*args, **kwargs):
        calls.append(kwargs["mask"])
        return tk.cross_attention(*args, **kwargs)

    monkeypatch.setattr("tdc_kernels._drop_in.cross_attention", counted)
    model = qformer(family)
    tk.accelerate(model)
    runner(family)(model)
    assert calls == [None] * CROSS  # a mask that hides nothing is no mask
    runner(family, masked=True)(model)
    assert [x.dtype for x in calls[CROSS:]] == [torch.bool] * CROSS


@pytest.mark.parametrize("family", FAMILIES)
def test_three_steps_of_training(family, backend):
    run, start = runner(family, masked=True), qformer(family).train()

    def losses(model: nn.Module) -> list[float]:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        found = []
        for _ in range(3):
            loss = run(model).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        return found

    ours = copy.deepcopy(start)
    acceleration = tk.accelerate(ours)
    wanted, found = losses(start), losses(ours)
    assert not acceleration.fallbacks
    assert wanted[0] != wanted[2]
    assert found == pytest.approx(wanted, rel=1e-4)


@pytest.mark.filterwarnings("ignore:.*checkpointing_enable.*:FutureWarning")  # its new name
@pytest.mark.parametrize("family", list(NAMES))
def test_gradient_checkpointing(family, backend):
    run, model = runner(family, masked=True), qformer(family).train()

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        run(model).square().sum().backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    wanted = gradients()
    model.gradient_checkpointing_enable()
    acceleration = tk.accelerate(model)
    found = gradients()
    assert not acceleration.fallbacks
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cast", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_half_precision_and_autocast(family, dtype, cast):
    module = attentions(qformer(family))[0][1]
    x, tokens = torch.randn(FRAMES, QUERIES, WIDTH), torch.randn(FRAMES, TOKENS, DEPTH)
    mask = additive(MASKS["some"])

    def run(module: nn.Module, dtype: torch.dtype) -> torch.Tensor:
        given = {"encoder_hidden_states": tokens.to(dtype), "encoder_attention_mask": mask}
        return module(x.to(dtype), **given)[0]

    exact = run(copy.deepcopy(module).double(), torch.float64)
    used, mask = (module, mask) if cast else (module.to(dtype), mask.clamp_min(-1e4).to(dtype))
    inputs = torch.float32 if cast else dtype
    with torch.autocast("cpu", dtype, enabled=cast):
        plain = run(used, inputs)
        acceleration = tk.accelerate(used)
        ours = run(used, inputs)
    assert not acceleration.fallbacks
    assert ours.dtype == plain.dtype == dtype
    judge(ours, plain, exact)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_compiles_in_one_graph(family, dtype):
    module, visible = attentions(qformer(family))[0][1].to(dtype), MASKS["some"]
    x, tokens = torch.randn(FRAMES, QUERIES, WIDTH), torch.randn(FRAMES, TOKENS, DEPTH)
    x, tokens, mask = (a.to(dtype) for a in (x, tokens, additive(visible).clamp_min(-3e38)))
    masks = {"encoder_hidden_states": tokens, "encoder_attention_mask": mask}
    wanted = module(x, **masks)[0]
    tk.accelerate(module)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    near = {} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.05}
    torch.testing.assert_close(compiled(x, **masks)[0], wanted, **near)
    # A compiler cannot look at the mask: what the op does not do is NaN, not wrong.
    masks["encoder_attention_mask"] = masks["encoder_attention_mask"].clamp_min(-1.0)
    assert compiled(x, **masks)[0].isnan().all()


def small_model(family: str) -> nn.Module:
    import transformers

    config = getattr(transformers, f"{NAMES[family]}Config")(
        vision_config={
            "hidden_size": DEPTH,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
        },
        qformer_config={
            "hidden_size": WIDTH,
            "encoder_hidden_size": DEPTH,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "vocab_size": 50,
        },
        text_config={
            "model_type": "opt",
            "hidden_size": 16,
            "ffn_dim": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "vocab_size": 50,
            "word_embed_proj_dim": 16,
        },
        num_query_tokens=QUERIES,
        **{("video" if "video" in family else "image") + "_token_index": 49},
    )
    model = getattr(transformers, f"{NAMES[family]}ForConditionalGeneration")(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.mark.parametrize("family", list(NAMES))
def test_a_whole_model_generates_the_same_tokens(family):
    model = small_model(family)
    frames = 4 if family == "instructblip_video" else 1
    inputs = {
        "pixel_values": torch.randn(2, frames, 3, 28, 28).squeeze(1),
        "input_ids": torch.cat(
            [torch.full((2, QUERIES * frames), 49), torch.randint(3, 48, (2, 4))], dim=1
        ),
    }
    if family != "blip2":
        inputs |= {"qformer_input_ids": torch.randint(3, 48, (2, 4))}
        inputs |= {"qformer_attention_mask": torch.ones(2, 4, dtype=torch.long)}
    options = {
        "max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True,
        "output_logits": True,
    }  # fmt: skip
    plain = model.generate(**inputs, **options)
    acceleration = tk.accelerate(model)
    ours = model.generate(**inputs, **options)
    assert len(acceleration.replaced) == 1
    assert not acceleration.fallbacks
    assert torch.equal(ours.sequences, plain.sequences)
    assert len(plain.sequences.unique()) > 2
    for one, other in zip(ours.logits, plain.logits, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)

# SPDX-License-Identifier: Apache-2.0
"""Layers that are more than their weights, anywhere in the model: LoRA, quantisation, pruning,
hooks, parametrisations, sharding. Right is what the same layers give merged into plain ones."""

from __future__ import annotations

import copy
import functools
import socket
from collections.abc import Callable, Iterable

import pytest
import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from toy import toy_inputs, toy_model, toy_processor

from tdc.compressor.speedups import Speedups
from tdc_kernels.plain import is_plain_linear, linear_reason

slow = pytest.mark.slow


def some_slow(names: Iterable[str], fast: Iterable[str]) -> list:
    return [pytest.param(name, marks=() if name in fast else slow) for name in names]


SPEEDUPS = [
    pytest.param(Speedups(), id="default"),
    pytest.param(Speedups(joint_keys_values=True), id="all", marks=slow),
    pytest.param(Speedups.none(), id="none", marks=slow),
]


@pytest.fixture(scope="module")
def inputs():
    return toy_inputs(toy_processor(), frames=6, sound=1.0)


@functools.cache
def original(seed: int) -> nn.Module:
    return toy_model(seed=seed).double()


def new_model(seed: int = 0) -> nn.Module:
    """In fp64, in which merged and live differ by rounding alone."""
    return copy.deepcopy(original(seed))


def context(model, inputs) -> torch.Tensor:
    features = model.encode_video(**inputs)
    ids, mask = inputs["question_ids"], inputs["question_mask"]
    return torch.cat(model.build_context(features, ids, mask).tokens)


def linears(model) -> dict[str, nn.Linear]:
    """All that are ours: compressor, connector, BEATs."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear)
        and name.startswith(("compressor.", "video_encoder.connector.", "video_encoder.beats."))
    }


class Scaled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 1.5 * weight


class Wrapped(nn.Linear):
    """What LoRA and quantisation look like: a subclass whose call does more."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(1.5 * x)


def scale_weight(layer: nn.Linear) -> None:
    layer.weight.mul_(1.5)


def scale_all(layer: nn.Linear) -> None:
    scale_weight(layer)
    if layer.bias is not None:
        layer.bias.mul_(1.5)


def with_forward(layer: nn.Linear) -> None:
    forward = layer.forward
    layer.forward = lambda x: 1.5 * forward(x)


def pruned(layer: nn.Linear) -> None:
    prune.random_unstructured(layer, "weight", amount=0.5)
    layer.weight_orig.mul_(3)  # `weight` is old until the next call


def merge_pruned(layer: nn.Linear) -> None:
    pruned(layer)
    prune.remove(layer, "weight")


def normed(norm: Callable) -> Callable[[nn.Linear], None]:
    def change(layer: nn.Linear) -> None:
        norm(layer)
        layer.parametrizations.weight.original0.mul_(1.5)

    return change


KINDS: dict[str, tuple[Callable, Callable]] = {
    "hook": (lambda x: x.register_forward_hook(lambda m, args, out: 1.5 * out), scale_all),
    "hook before": (
        lambda x: x.register_forward_pre_hook(lambda m, args: (1.5 * args[0],)),
        scale_weight,
    ),
    "own forward": (with_forward, scale_all),
    "subclass": (lambda x: setattr(x, "__class__", Wrapped), scale_weight),
    "pruned": (pruned, merge_pruned),
    "parametrised": (
        lambda x: parametrize.register_parametrization(x, "weight", Scaled()),
        scale_weight,
    ),
    "weight norm": (normed(parametrizations.weight_norm), scale_weight),
}


@torch.no_grad()
@pytest.mark.parametrize("speedups", SPEEDUPS)
@pytest.mark.parametrize("kind", some_slow(KINDS, ("hook", "pruned", "parametrised")))
def test_merged_and_live_agree(kind, speedups, inputs):
    change, merge = KINDS[kind]
    live, merged = new_model(), new_model()
    for model in (live, merged):
        model.compressor.speedups = speedups
    plain = context(live, inputs)  # caches are full
    for model, function in ((live, change), (merged, merge)):
        torch.manual_seed(1)
        for layer in linears(model).values():
            function(layer)
    expected = context(merged, inputs)
    torch.testing.assert_close(context(live, inputs), expected, rtol=0, atol=1e-9)
    assert (expected - plain).abs().max() > 1e-2


@slow
@torch.no_grad()
@pytest.mark.parametrize("name", linears(original(0)))
def test_each_layer_alone(name, inputs):
    """Its neighbours are read still. The hook is called, on everything that the layer computes."""
    live, merged = new_model(), new_model()
    scale_all(merged.get_submodule(name))
    live.get_submodule(name).register_forward_hook(lambda m, args, out: 1.5 * out)
    torch.testing.assert_close(context(live, inputs), context(merged, inputs), rtol=0, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize(
    "name",
    [
        "video_encoder.connector.projector",
        "video_encoder.connector.samplers.0.1.towers.0",
        "compressor.qformer.layers.0.cross_attention",
    ],
)
def test_hooks_on_what_holds_the_layers_run(name, inputs):
    model, seen = new_model(), []
    expected = context(model, inputs)
    model.get_submodule(name).register_forward_hook(lambda m, args, out: seen.append(1))
    torch.testing.assert_close(context(model, inputs), expected, rtol=0, atol=1e-9)
    assert seen


@torch.no_grad()
def test_global_hooks_see_every_layer(inputs):
    model, seen = new_model(), set()
    expected = context(model, inputs)
    hook = nn.modules.module.register_module_forward_hook(lambda m, args, out: seen.add(m))
    try:
        torch.testing.assert_close(context(model, inputs), expected, rtol=0, atol=1e-9)
    finally:
        hook.remove()
    dead = "qformer.layers.2.ffn_text"  # nothing reads its result
    assert {m for n, m in linears(model).items() if dead not in n} <= seen


@slow
@torch.no_grad()
def test_half_types_on_a_cpu(inputs, monkeypatch):
    """Copies in fp32 hold what their parameters say, not what hooks do."""
    monkeypatch.setattr("tdc.compressor.compressor.has_matrix_units", lambda: False)
    model, merged = new_model().bfloat16(), new_model().bfloat16()
    for one in (model, merged):
        context(one, inputs)
    layer = model.compressor.output_proj
    layer.register_forward_hook(lambda m, args, out: 2 * out)
    layer.register_forward_hook(lambda m, args, out: -out)
    for p in merged.compressor.output_proj.parameters():
        p.mul_(-2)
    expected = context(merged, inputs).float()
    assert (context(model, inputs).float() - expected).abs().max() < 0.1 < expected.abs().max()


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_dynamic_quantisation(inputs):
    model = new_model().float()
    plain = context(model, inputs)
    torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, inplace=True)
    assert not linears(model)
    found = context(model, inputs)
    assert 0 < (found - plain).abs().max() < 0.2 * plain.abs().max()


# ---------------------------------------------------------------- LoRA

TARGETS = {
    "cross-attention": r"compressor.*cross_attention\.(query|key|value|out)",
    "self-attention": r"compressor.*\.attention\.(query|key|value|out)",
    "feed-forwards": r"compressor.*\.ffn_(query|text)\.(up|down)",
    "projections": r"compressor\.(query|audio|output)_proj",
    "connector": r"video_encoder\.connector\..*(fc1|fc2|key|value|query|out|mix|context|tor\.[02])",
    "towers": r"video_encoder\.(siglip|dinov2)\..*(fc1|fc2|q_proj|query|value|dense)",
    "words": r"compressor\.qformer\.(word|position)_embeddings",
}


def adapted(model, targets: str, add: Callable = get_peft_model):
    lora = LoraConfig(r=2, lora_alpha=8, target_modules=targets)
    model = add(model, lora) if add is get_peft_model else add(lora, model)
    std = 0.02 if "dinov2" in targets else 0.4  # scenes must stay where they are
    torch.manual_seed(1)
    for name, p in model.named_parameters():
        if "lora_" in name:
            p.data = torch.randn_like(p).double() * std
    return model


@pytest.mark.parametrize("where", some_slow(TARGETS, ("cross-attention",)))
def test_adapters(where, inputs):
    targets = TARGETS[where]
    model = new_model()
    before = model(**inputs).logits.detach()
    model = adapted(model, targets).eval()
    live = model(**inputs).logits
    live.square().sum().backward()
    idle = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not idle
    with torch.no_grad():
        frozen = model(**inputs).logits
        with model.disable_adapter():
            off = model(**inputs).logits
        merged = model.merge_and_unload()(**inputs).logits
    assert (live - before).abs().max() > 1e-3
    for found, expected in ((frozen, live), (off, before), (merged, live)):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)


@torch.no_grad()
def test_merging_without_a_run_in_between(inputs):
    """PEFT merges through ``.data``, which counts no version."""
    model = new_model()
    before = context(model, inputs)
    targets = r"(compressor|video_encoder\.connector)\..*(key|value|proj|tor\.2)"
    other = adapted(new_model(), targets).eval().merge_and_unload()
    adapted(model, targets, inject_adapter_in_model)
    for layer in [m for m in model.modules() if hasattr(m, "get_base_layer")]:
        layer.merge()
    for name, layer in list(model.named_modules()):
        if hasattr(layer, "get_base_layer"):
            model.set_submodule(name, layer.get_base_layer())
    expected = context(other, inputs)
    torch.testing.assert_close(context(model, inputs), expected, rtol=0, atol=1e-9)
    assert (expected - before).abs().max() > 1e-2


# ---------------------------------------------------------------- sharded, compiled


@pytest.fixture
def one_process():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=0, world_size=1)
    yield torch.distributed.init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("grad", [pytest.param(False, marks=slow), True])
def test_every_layer_sharded_by_itself(grad, inputs, one_process):
    from torch.distributed.fsdp import fully_shard

    model = new_model()
    expected = context(model, inputs).detach()
    for layer in linears(model).values():
        fully_shard(layer, mesh=one_process)
    for layer in model.modules():
        if isinstance(layer, (nn.Embedding, nn.LayerNorm)):
            fully_shard(layer, mesh=one_process)
    with torch.set_grad_enabled(grad):
        found = context(model, inputs)
    torch.testing.assert_close(found.detach(), expected, rtol=0, atol=1e-9)
    if grad:
        found.square().sum().backward()
        assert all(p.grad is not None for p in model.compressor.parameters())


@slow
@torch.no_grad()
@pytest.mark.parametrize(
    "name",
    [
        "compressor.qformer.layers.0.cross_attention",
        "compressor.qformer.layers.0.cross_attention.key",
        "compressor.qformer.layers.1",
        "compressor.qformer",
        "video_encoder.connector.projector",
        "video_encoder.connector.projector.2",
        "video_encoder.dinov2.model",
    ],
)
def test_compiled_submodules(name, inputs):
    model = new_model()
    expected = context(model, inputs)
    model.set_submodule(name, torch.compile(model.get_submodule(name), backend="eager"))
    torch.testing.assert_close(context(model, inputs), expected, rtol=0, atol=1e-9)


def test_the_rule():
    """What is read, and the reason where it is not."""
    assert is_plain_linear(nn.Linear(2, 3), nn.Linear(2, 3, bias=False))
    assert not is_plain_linear(nn.Linear(2, 3), nn.Identity())
    sub = nn.Linear(2, 3)
    sub.bias = type("Other", (nn.Parameter,), {})(torch.zeros(3))
    assert linear_reason("key", sub) == "key.bias is a Other"

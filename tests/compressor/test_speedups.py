# SPDX-License-Identifier: Apache-2.0
"""The compressor's speedups: the same tokens with each on and off, and really less work."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from dataclasses import fields, replace

import pytest
import torch
import torch.nn.functional as F
from test_compressor import D, K, compressor, plan_of, ragged
from torch import Tensor

import tdc.compressor.compressor
import tdc.compressor.qformer
import tdc_kernels.nn
from tdc.compressor.speedups import Speedups
from tdc.encoder.features import VideoFeatures
from tdc.encoder.visual_tokens import VisualTokens
from tdc.tensor_cache import TensorCache

NAMES = [field.name for field in fields(Speedups)]
each = pytest.mark.parametrize("name", NAMES)


def question(padded: bool) -> dict[str, Tensor]:
    mask = torch.ones(3, 7, dtype=torch.bool)
    if padded:
        mask[0, 4:] = mask[2, 2:] = False
    return {"question_ids": torch.randint(5, 80, (3, 7)), "question_mask": mask}


def unprojected() -> VideoFeatures:
    """Features of which the visual projector's last layer is still to come."""
    features = ragged()
    hidden = torch.randn(*features.visual.values.shape[:2], 32).double()
    for frame, length in enumerate(features.visual_lengths):
        hidden[frame, length:] = 1e3
    return replace(features, visual=VisualTokens(hidden, torch.randn(D, 32).double()))


def run(module, features, speedups, window=4, static=True, **question_kw) -> Tensor:
    module.speedups = speedups
    return module(features, plan_of(features, window, static), **question_kw)[0]


@torch.no_grad()
@each
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("make", [ragged, unprojected, lambda: ragged(audio=False)])
def test_changes_nothing(name, padded, make):
    """Alone on, and alone off."""
    module, features, asked = compressor().eval(), make(), question(padded)
    plain = run(module, features, Speedups.none(), **asked)
    default = Speedups()
    for speedups in (
        replace(Speedups.none(), **{name: True}),
        replace(default, **{name: not getattr(default, name)}),
        default,
    ):
        for window, static in ((4, True), (None, False)):
            wanted = (
                plain if static else run(module, features, Speedups.none(), window, static, **asked)
            )
            got = run(module, features, speedups, window, static, **asked)
            torch.testing.assert_close(got, wanted, rtol=0, atol=1e-11)


@torch.no_grad()
@pytest.mark.parametrize("query_type", ["pooled", "learned"])
def test_no_question(query_type):
    module, features = compressor(query_type).eval(), ragged()
    wanted = run(module, features, Speedups.none())
    torch.testing.assert_close(run(module, features, Speedups()), wanted, rtol=0, atol=1e-11)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_change_nothing(checkpointing):
    module, asked, gradients, made = compressor(), question(True), [], unprojected()
    for speedups in (Speedups.none(), Speedups()):
        visual = made.visual.values.clone().requires_grad_()
        features = replace(made, visual=replace(made.visual, values=visual))
        module.qformer.gradient_checkpointing = checkpointing
        module.zero_grad()
        out = run(module.train(), features, speedups, **asked)
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        gradients.append([visual.grad, *(p.grad for p in module.parameters())])
    for ours, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, plain, rtol=0, atol=1e-9)


class Rows:
    """Counts rows of tokens that go through modules."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: dict[int, int] = {}
        forward = torch.nn.Linear.forward

        def counting(module: torch.nn.Linear, x: Tensor) -> Tensor:
            self.seen[id(module)] = self.seen.get(id(module), 0) + x[..., 0].numel()
            return forward(module, x)

        monkeypatch.setattr(torch.nn.Linear, "forward", counting)

    def of(self, module: torch.nn.Module) -> int:
        return self.seen.get(id(module), 0)


@torch.no_grad()
def test_less_work(monkeypatch):
    """What goes through the first and the last layer, and through the audio projection."""
    module, features, asked = compressor().eval(), ragged(), question(False)
    plan = plan_of(features, 4, True)
    rows, anchors, text = len(plan.dynamic), len(plan.anchors), 7
    first, last = module.qformer.layers[0], module.qformer.layers[-1]
    heard = features.audio[..., 0].numel()
    for speedups, spread, dead in ((Speedups.none(), rows, text), (Speedups(), anchors, 0)):
        counted = Rows(monkeypatch)
        run(module, features, speedups, **asked)
        assert counted.of(first.attention.query) == spread * (K + text)
        assert counted.of(first.ffn_text.up) == spread * text
        assert counted.of(first.ffn_query.up) == rows * K
        assert counted.of(last.ffn_text.up) == rows * dead
        assert counted.of(last.attention.query) == rows * (K + dead)
        of_anchors = anchors * features.audio.shape[1]
        assert counted.of(module.audio_proj) == of_anchors + (0 if dead == 0 else heard)
        monkeypatch.undo()


@torch.no_grad()
def test_folded_tokens_keep_their_width(monkeypatch):
    module, features = compressor().eval(), unprojected()
    widths = []
    attend = tdc.compressor.qformer.CrossAttention.forward

    def forward(self, x, frames, layer):
        widths.append((frames.visual.shape[2], frames.audio.shape[2]))
        return attend(self, x, frames, layer)

    monkeypatch.setattr(tdc.compressor.qformer.CrossAttention, "forward", forward)
    run(module, features, Speedups())
    assert set(widths) == {(32, 16)}  # as it came; 12 and a one, rounded up to a multiple of 8
    widths.clear()
    run(module, features, Speedups.none())
    assert set(widths) == {(D, D)}


@torch.no_grad()
def test_the_next_question_finds_what_does_not_depend_on_it(monkeypatch):
    module, features, pooled = compressor().eval(), ragged(), []
    pool = tdc.compressor.compressor.anchor_queries
    monkeypatch.setattr(
        tdc.compressor.compressor,
        "anchor_queries",
        lambda *a, **k: pooled.append(1) or pool(*a, **k),
    )
    run(module, features, Speedups(), **question(False))
    first = len(pooled)
    run(module, features, Speedups(), **question(False))
    assert len(pooled) == first > 0
    run(module, features, Speedups(), window=2)  # other anchors
    assert len(pooled) > first
    before = len(pooled)
    run(module, ragged(), Speedups())  # another video
    assert len(pooled) > before


@torch.no_grad()
def test_kept_keys_and_values_spare_the_cross_attention(monkeypatch):
    module, features = compressor().eval(), ragged()
    speedups = replace(Speedups(), joint_keys_values=True)
    monkeypatch.setattr(tdc_kernels.nn.CrossAttention, "forward", None)  # not called
    products = []
    linear = torch.matmul
    monkeypatch.setattr(torch, "matmul", lambda *a, **k: products.append(1) or linear(*a, **k))
    run(module, features, speedups, **question(False))
    count = len(products)
    assert count > 0
    run(module, features, speedups, **question(False))
    assert len(products) == count


@pytest.mark.parametrize(
    "change",
    [
        lambda m: torch.optim.SGD(m.parameters(), 0.5).step(),
        lambda m: m.load_state_dict({k: v + 0.1 for k, v in m.state_dict().items()}),
        lambda m: [p.data.add_(0.1) for p in m.train().eval().parameters()],
    ],
    ids=["optimizer", "load_state_dict", "data-after-train"],
)
@pytest.mark.parametrize("joint", [False, True])
def test_changed_weights_are_noticed(change, joint):
    module, features, asked = compressor().eval(), unprojected(), question(False)
    speedups = replace(Speedups(), joint_keys_values=joint)
    with torch.no_grad():
        before = run(module, features, speedups, **asked)
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    change(module)
    with torch.no_grad():
        after = run(module, features, speedups, **asked)
        wanted = run(copy.deepcopy(module), features, Speedups.none(), **asked)
    torch.testing.assert_close(after, wanted, rtol=0, atol=1e-10)
    assert (after - before).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("joint", [False, True])
def test_each_source_of_what_is_kept_counts(joint):
    """One parameter at a time, then the sound alone, then what of it is heard."""
    module, features, asked = compressor().eval(), unprojected(), question(False)
    speedups = replace(Speedups(), joint_keys_values=joint)

    def check(features):
        got = run(module, features, speedups, **asked)
        wanted = run(copy.deepcopy(module), features, Speedups.none(), **asked)
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-10)

    for parameter in module.parameters():
        run(module, features, speedups, **asked)
        parameter.add_(0.3)
        check(features)
    other = replace(features, audio=features.audio.flip(0))
    check(other)
    heard = tuple(min(n, 2) for n in other.audio_lengths)
    check(replace(other, audio_lengths=heard))


def to_dtype(features, dtype):
    visual = VisualTokens(*(x.to(dtype) for x in features.visual.tensors()))
    return replace(features, visual=visual, audio=features.audio.to(dtype))


def half(module, features):
    return module.to(torch.bfloat16), to_dtype(features, torch.bfloat16)


@torch.no_grad()
@pytest.mark.parametrize("make", [ragged, unprojected])
def test_half_types_in_fp32(make, monkeypatch):
    """Closer to fp64 than half precision all the way; nothing else changes."""
    monkeypatch.setattr(tdc.compressor.compressor, "has_matrix_units", lambda: False)
    torch.manual_seed(3)
    module, features = half(compressor().eval(), make())
    asked = question(False)
    plain = run(module, features, Speedups.none(), static=False, **asked)
    ours = run(module, features, Speedups(), static=False, **asked)
    assert ours.dtype == torch.bfloat16
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
    wide = to_dtype(features, torch.float64)
    exact = run(copy.deepcopy(module).double(), wide, Speedups.none(), static=False, **asked)
    assert F.mse_loss(ours.double(), exact) < 0.5 * F.mse_loss(plain.double(), exact)


@torch.no_grad()
def test_half_types_stay_where_there_are_units_for_them(monkeypatch):
    monkeypatch.setattr(tdc.compressor.compressor, "has_matrix_units", lambda: True)
    module, features = half(compressor().eval(), ragged())
    monkeypatch.setattr(type(module), "_in_fp32", None)
    run(module, features, Speedups())


@torch.no_grad()
def test_copies_start_empty_and_videos_are_not_kept():
    module, features = compressor().eval(), unprojected()
    run(module, features, Speedups())
    assert module.cache._entries
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert not other.cache._entries
        torch.testing.assert_close(
            run(other, features, Speedups()), run(module, features, Speedups())
        )
    assert not [k for k in module.state_dict() if "cache" in k or "speedups" in k]
    visual = weakref.ref(features.visual.values)
    del features
    gc.collect()
    assert visual() is None


def test_the_cache_notices_changes():
    cache, made = TensorCache(), []
    x = torch.zeros(3)

    def get(*sources, key=None):
        return cache.get("x", sources, lambda: made.append(1) or len(made), key)

    assert get(x) == get(x) == 1
    assert get(x, key="other") == 2
    x.add_(1)
    assert get(x) == 3
    assert get(x.clone()) == 4
    with torch.inference_mode():
        y = torch.zeros(3)
        assert get(y) == get(y) == 5
    cache.clear()
    assert get(y) == 6


@pytest.mark.parametrize("shape", [(64, 128), (128, 64), (90, 90), (100, 4097), (5000,), (7, 9)])
def test_the_cache_notices_a_row_or_column_written_through_data(shape):
    cache, x = TensorCache(), torch.nn.Parameter(torch.rand(shape))
    rows = [(i, ...) for i in range(shape[0])]
    columns = [(..., i) for i in range(shape[-1])]
    with torch.no_grad():
        for where in rows[:: len(rows) // 7] + columns[:: len(columns) // 7]:
            before = cache.get("x", [x], object)
            assert cache.get("x", [x], object) is before
            x.data[where] += 1
            assert cache.get("x", [x], object) is not before

# SPDX-License-Identifier: Apache-2.0
"""What ``accelerate`` touches, what it tells, and the way back."""

from __future__ import annotations

import copy
import io
import pickle
import sys

import lavis
import pytest
import torch
from qformers import CROSS, FAMILIES, NAMES, attentions, qformer, runner
from torch import nn

import tdc_kernels as tk
from tdc_kernels.nn import CrossAttention

pytestmark = pytest.mark.usefixtures("torch_backend")


def everything(model: nn.Module) -> dict[str, tuple]:
    """Class and attributes of every module, by identity."""
    return {
        name: (type(m), {key: id(value) for key, value in m.__dict__.items()})
        for name, m in model.named_modules()
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_only_classes_change_and_come_back(family):
    model = qformer(family)
    before, text = everything(model), repr(model)
    acceleration = tk.accelerate(model)
    during = everything(model)
    assert repr(model) == text
    changed = {name for name in before if before[name] != during[name]}
    assert changed == {name for name, _ in attentions(model)}
    for name in changed:
        assert before[name][1] == during[name][1]
        old, new = before[name][0], during[name][0]
        assert issubclass(new, old)
        assert (new.__name__, new.__qualname__, new.__module__) == (
            old.__name__, old.__qualname__, old.__module__,
        )  # fmt: skip
    acceleration.undo()
    assert everything(model) == before
    acceleration.undo()  # nothing left to do
    assert everything(model) == before


@pytest.mark.parametrize("family", FAMILIES)
def test_twice_is_once(family):
    model = qformer(family)
    before = everything(model)
    first = tk.accelerate(model)
    during = everything(model)
    second = tk.accelerate(model)
    assert everything(model) == during
    assert second.replaced == []
    assert [(x.name, x.cls, x.reason) for x in second.skipped] == [
        (x.name, x.cls, "already accelerated") for x in first.replaced
    ]
    second.undo()
    assert everything(model) == during
    first.undo()
    assert everything(model) == before
    assert tk.accelerate(model).replaced == first.replaced


@pytest.mark.parametrize("family", FAMILIES)
def test_copies_and_pickles_are_plain(family):
    model, run = qformer(family), runner(family)
    acceleration = tk.accelerate(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    copies = {
        "deepcopy": copy.deepcopy(model),
        "pickle": pickle.loads(pickle.dumps(model)),
        "protocol 0": pickle.loads(pickle.dumps(model, protocol=0)),
        "torch.save": torch.load(file, weights_only=False),
    }
    single = copy.copy(attentions(model)[0][1])
    wanted = run(model)
    acceleration.undo()
    classes = {name: type(m) for name, m in model.named_modules()}
    assert type(single) is type(attentions(model)[0][1])
    for other in copies.values():
        assert {name: type(m) for name, m in other.named_modules()} == classes
        torch.testing.assert_close(run(other), wanted)
        assert len(tk.accelerate(other).replaced) == CROSS


def test_a_pickle_loads_without_tdc_kernels(monkeypatch):
    model = qformer("blip2")
    plain = type(model)
    tk.accelerate(model)
    written = pickle.dumps(model)
    for name in [name for name in sys.modules if name.partition(".")[0] == "tdc_kernels"]:
        monkeypatch.setitem(sys.modules, name, None)  # cannot be imported
    assert type(pickle.loads(written)) is plain


@pytest.mark.parametrize("family", list(NAMES))
def test_saved_files_are_the_same(family, tmp_path):
    model = qformer(family)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    names = [name for name, _ in model.named_parameters()]
    model.save_pretrained(tmp_path / "before")
    tk.accelerate(model)
    assert [name for name, _ in model.named_parameters()] == names
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    assert model.state_dict().keys() == state.keys()
    model.save_pretrained(tmp_path / "after")
    for file in (tmp_path / "before").iterdir():
        assert file.read_bytes() == (tmp_path / "after" / file.name).read_bytes()
    again = type(model).from_pretrained(tmp_path / "after")
    assert len(tk.accelerate(again).replaced) == CROSS


def test_hooks_on_modules_keep_working():
    model, run, seen = qformer("blip2"), runner("blip2"), []
    attention = attentions(model)[0][1]
    attention.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(module), with_kwargs=True
    )
    with tk.accelerate(model) as acceleration:
        run(model)
        assert not acceleration.fallbacks
    run(model)
    assert seen == [attention, attention]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_class(family):
    model, run = qformer(family), runner(family)
    cls = type(attentions(model)[0][1])
    forward, plain = cls.forward, run(model)
    with tk.accelerate(cls) as acceleration:
        assert cls.forward is not forward
        assert [(x.cls, x.what) for x in acceleration.replaced] == [(cls, "every instance")]
        assert acceleration.replaced[0].name == f"{cls.__module__}.{cls.__qualname__}"
        torch.testing.assert_close(run(model), plain)
        assert not acceleration.fallbacks
        for again in (tk.accelerate(cls), tk.accelerate(model)):
            assert {x.reason for x in again.skipped} == {"already accelerated"}
            assert not again.replaced
        later = qformer(family, attention_probs_dropout_prob=0.5).train()
        run(later)
        assert [x.reason for x in acceleration.fallbacks] == ["dropout is active"]
    assert cls.__dict__["forward"] is forward
    assert torch.equal(run(model), plain)


def test_a_class_that_inherits_its_forward():
    class Mine(lavis.BertSelfAttention):
        pass

    acceleration = tk.accelerate(Mine)
    assert "forward" in Mine.__dict__
    assert "_tdc_original" not in lavis.BertSelfAttention.forward.__dict__
    acceleration.undo()
    assert "forward" not in Mine.__dict__


def test_module_then_class_and_back_in_any_order():
    model, run = qformer("lavis"), runner("lavis")
    before, plain = everything(model), run(model)
    forward = lavis.BertSelfAttention.forward
    for order in (0, 1):
        both = [tk.accelerate(model), tk.accelerate(lavis.BertSelfAttention)]
        torch.testing.assert_close(run(model), plain)
        both.pop(order).undo()
        torch.testing.assert_close(run(model), plain)
        both.pop().undo()
        assert everything(model) == before
        assert lavis.BertSelfAttention.forward is forward


def test_undo_leaves_what_somebody_else_changed():
    model = qformer("blip2")
    acceleration = tk.accelerate(model)
    (name, first), (_, second) = attentions(model)

    class Sharded(type(first)):  # what fully_shard does
        pass

    first.__class__ = Sharded
    with pytest.raises(RuntimeError, match=f"undo: {name} has got another class since, Sharded"):
        acceleration.undo()
    assert type(first) is Sharded
    assert type(second) is acceleration.replaced[1].cls

    forward = lavis.BertSelfAttention.forward
    acceleration = tk.accelerate(lavis.BertSelfAttention)
    lavis.BertSelfAttention.forward = forward
    with pytest.raises(RuntimeError, match=r"lavis\.BertSelfAttention has got another forward"):
        acceleration.undo()
    assert lavis.BertSelfAttention.forward is forward


def test_dry_run_and_report():
    model = qformer("instructblip_video")
    before = everything(model)
    attentions(model)[1][1].key.register_forward_hook(lambda *_: None)
    planned = tk.accelerate(model, dry_run=True)
    assert everything(model) == before
    line = "InstructBlipVideoQFormerMultiHeadAttention"
    assert str(planned).splitlines() == [
        "would be replaced by tdc_kernels.cross_attention: 1",
        f"  encoder.layer.0.crossattention.attention  {line}  3 heads of 8 over 20 channels",
        "left as they are: 1",
        f"  encoder.layer.2.crossattention.attention  {line}"
        "  key has hooks or a forward of its own",
    ]
    assert repr(planned) == "<Acceleration: 1 replaced, 1 skipped>"
    done = tk.accelerate(model)
    assert str(done).startswith("replaced by tdc_kernels.cross_attention: 1\n")
    assert (done.replaced, done.skipped) == (planned.replaced, planned.skipped)
    model.train()
    attentions(model)[0][1].attention_dropout = 0.1
    runner("instructblip_video")(model)
    assert str(done).splitlines()[-2:] == [
        "calls that fell back: 1",
        f"  encoder.layer.0.crossattention.attention  {line}  dropout is active",
    ]
    assert str(tk.accelerate(model)).startswith("replaced by tdc_kernels.cross_attention: nothing")


def test_equal_widths_are_told_by_name():
    model = qformer("instructblip", encoder_hidden_size=24)
    assert [x.name for x in tk.accelerate(model).replaced] == [n for n, _ in attentions(model)]
    attention = attentions(qformer("lavis", encoder_hidden_size=24))[0][1]
    assert [x.name for x in tk.accelerate(attention).replaced] == ["(the module itself)"]


class Sigmoid(lavis.BertSelfAttention):
    """The right form, another formula."""

    def forward(self, hidden_states, encoder_hidden_states=None, encoder_attention_mask=None):
        q, k, v = (self.by_head(f(x)) for f, x in (
            (self.query, hidden_states), (self.key, encoder_hidden_states),
            (self.value, encoder_hidden_states),
        ))  # fmt: skip
        return ((q @ k.transpose(2, 3)).sigmoid() @ v).transpose(1, 2).flatten(2), None


class Lost(lavis.BertSelfAttention):
    def forward(self, hidden_states, encoder_hidden_states=None, encoder_attention_mask=None):
        return self.not_there(hidden_states)


class More(lavis.BertSelfAttention):
    def forward(self, hidden_states, attention_mask=None, encoder_hidden_states=None, encoder_attention_mask=None):  # fmt: skip  # noqa: E501
        out = super().forward(
            hidden_states, None, None, encoder_hidden_states, encoder_attention_mask
        )
        return (*out, out[0].sum())


class Other(lavis.BertSelfAttention):
    def forward(self, x, context):
        return x


@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        (Sigmoid, r"it computes something else than softmax\(q K\^T / sqrt\(d\)\) V"),
        (Lost, "tried out, it raised AttributeError: 'Lost' object has no attribute 'not_there'"),
        (More, "it returns more than attention, its weights, and keys and values"),
    ],
)
def test_the_right_form_is_not_enough(cls, reason):
    module = cls(lavis.Config(), True)
    state, draws = torch.get_rng_state(), module.__dict__.copy()
    (skipped,) = tk.accelerate(module).skipped
    assert torch.equal(torch.get_rng_state(), state)
    assert module.__dict__ == draws
    with pytest.raises(ValueError, match=f"target: .* cannot be served: {reason}"):
        tk.accelerate(cls)
    assert type(module) is cls
    import re

    assert re.fullmatch(reason, skipped.reason)


def test_what_is_no_cross_attention():
    looked_for = (
        "looked for modules with linear layers query, key, value, the numbers num_attention_heads,"
        " attention_head_size and a forward that takes hidden_states, encoder_hidden_states,"
        " encoder_attention_mask"
    )
    with pytest.raises(ValueError, match="target: found no cross-attention in Linear: looked for"):
        tk.accelerate(nn.Linear(2, 2))
    with pytest.raises(ValueError) as error:
        tk.accelerate(Other)
    assert str(error.value).endswith(f"Other is no cross-attention: {looked_for}")
    for bad in (3, int, "model"):
        with pytest.raises(TypeError, match=r"target: expected an nn\.Module or a class of them"):
            tk.accelerate(bad)
    (skipped,) = tk.accelerate(Other(lavis.Config(), True)).skipped
    assert skipped.reason.startswith("its forward does not take hidden_states, encoder_hidden_")
    (skipped,) = tk.accelerate(nn.Sequential(CrossAttention(8, 6, 2))).skipped
    assert skipped == ("0", CrossAttention, "calls tdc_kernels.cross_attention itself")


def test_a_forward_on_the_instance_is_left_alone():
    model = qformer("blip2")
    first = attentions(model)[0][1]
    first.forward = first.forward
    (skipped,) = tk.accelerate(model).skipped
    assert skipped.reason == "it has a forward of its own (a hook of device_map, or a wrapper)"


def test_weights_on_no_device_are_not_touched():
    with torch.device("meta"):
        model = qformer("blip2")
    assert len(tk.accelerate(model).replaced) == CROSS

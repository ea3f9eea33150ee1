# SPDX-License-Identifier: Apache-2.0
"""The forward that ``accelerate`` gives to other people's cross-attention, and what it refuses.

A class is known by what its forward takes and computes, never by its name or module: linear layers
``query``, ``key`` and ``value``, the numbers ``num_attention_heads`` and ``attention_head_size``,
and ``forward(hidden_states, ..., encoder_hidden_states, encoder_attention_mask, ...)``. That is the
Q-Former of BLIP-2, InstructBLIP and InstructBLIP-Video in transformers, and of LAVIS and the code
that grew out of it. What it computes is tried out on small random tensors before it is replaced.

Every call is looked at again, the cheap things first: whatever the op does not do goes to the
original forward.
"""

from __future__ import annotations

import copy
import functools
import inspect
import logging
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from tdc_kernels import registry
from tdc_kernels.ops.cross_attention import cross_attention, reference, strategy
from tdc_kernels.plain import linear_reason

logger = logging.getLogger(__name__)

LAYERS = ("query", "key", "value")
NUMBERS = ("num_attention_heads", "attention_head_size")
TAKES = ("hidden_states", "encoder_hidden_states", "encoder_attention_mask")
LOOKED_FOR = (
    f"modules with linear layers {', '.join(LAYERS)}, the numbers {', '.join(NUMBERS)}"
    f" and a forward that takes {', '.join(TAKES)}"
)
# Arguments beyond a forward's named ones that do not change what an attention computes.
HARMLESS = frozenset(
    (
        "output_hidden_states",
        "return_dict",
        "use_cache",
        "num_items_in_batch",
        "interpolate_pos_encoding",
    )
)
# Implementations of transformers that compute the plain formula; another one was chosen on purpose.
PLAIN = (None, "eager", "sdpa")
# The hook transformers leaves on attention once weights were asked for; it reads them only if so.
RECORDER = "output_capturing_hook"
# A float mask is 0 where a token is seen and at most this where not: exp(-1000) is 0 in fp64 too.
HIDDEN = -1000.0
NO_TOKENS = "no encoder_hidden_states: self-attention"

# Reasons for fallbacks, by module.
FELL_BACK: weakref.WeakKeyDictionary[nn.Module, set[str]] = weakref.WeakKeyDictionary()
_SAID: set[tuple[str, str]] = set()


class Unserved(Exception):
    """Why a module is left alone; the text is for people."""


@dataclass(frozen=True)
class Form:
    """Parameters of a forward, in order and without self."""

    names: tuple[str, ...]
    others: tuple[tuple[str, Any], ...]  # what must stay at its default, and that default
    keywords: bool  # takes **kwargs


def form_of(forward: Any) -> Form | None:
    """None where the forward is not one of a cross-attention that can be served."""
    try:
        parameters = list(inspect.signature(forward).parameters.values())[1:]
    except (TypeError, ValueError):
        return None
    named = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    names = tuple(p.name for p in named)
    if names[:1] != TAKES[:1] or not set(TAKES) <= set(names):
        return None
    # `attention_mask` is for self-attention; with encoder_hidden_states the other mask counts.
    others = [p for p in parameters if p.name not in (*TAKES, "attention_mask")]
    keywords = any(p.kind is p.VAR_KEYWORD for p in others)
    others = [p for p in others if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return Form(names, tuple((p.name, p.default) for p in others), keywords)


# ---------------------------------------------------------------- the forward


def make_forward(original: Callable[..., Any], form: Form, outputs: int) -> Callable[..., Any]:
    """The forward that serves a call or hands it on; it returns a tuple of ``outputs``."""
    nothing = (None,) * (outputs - 1)  # attention weights, keys and values: nobody computed them

    @functools.wraps(original)
    def forward(self, *args, **kwargs):
        given = dict(zip(form.names, args, strict=False))
        given.update(kwargs)
        reason = argument_reason(given, form, len(args)) or module_reason(self)
        if reason is None:
            reason = call_reason(self, given)
        seen = bias = None
        if reason is None and given.get("encoder_attention_mask") is not None:
            seen, bias, reason = seen_tokens(self, given)
        if reason is not None:
            note(self, reason)
            return original(self, *args, **kwargs)
        key, value = self._modules["key"], self._modules["value"]
        attended = cross_attention(
            self.query(given["hidden_states"]),  # called, not read: its hooks and LoRA are its own
            given["encoder_hidden_states"],
            w_key=key.weight,
            b_key=key.bias,
            w_value=value.weight,
            b_value=value.bias if bias is None else bias,
            num_heads=self.num_attention_heads,
            mask=seen,
        )
        return (attended, *nothing)

    forward._tdc_original = original  # type: ignore[attr-defined]  # see `is_ours`
    return forward


def is_ours(function: Any) -> bool:
    return hasattr(function, "_tdc_original")


def note(module: nn.Module, reason: str) -> None:
    """Remember why a call went to the original forward; said once per class at level INFO."""
    if reason is NO_TOKENS or torch.compiler.is_compiling():
        return
    FELL_BACK.setdefault(module, set()).add(reason)
    said = (type(module).__name__, reason)
    if said not in _SAID:
        _SAID.add(said)
        logger.info("%s: original forward: %s", *said)


# ---------------------------------------------------------------- reasons, the cheap ones first


def argument_reason(given: dict[str, Any], form: Form, positional: int) -> str | None:
    if given.get("encoder_hidden_states") is None:
        return NO_TOKENS
    if positional > len(form.names) or given.get("hidden_states") is None:
        return "the arguments do not fit its forward"
    for name, default in form.others:
        x = given.get(name)
        if x is not None and x is not False and x is not default:
            return f"{name} is given"
    if form.keywords:
        for name, x in given.items():
            if x is not None and x is not False and name not in HARMLESS and name not in form.names:
                return f"{name} is given"
    return None


def module_reason(module: Any) -> str | None:
    """The part of the module's state that keeps its weights from being used directly."""
    for name in ("key", "value"):
        reason = linear_reason(name, module._modules.get(name))
        if reason is not None:
            return reason
    state, cls = module.__dict__, type(module)  # nn.Module.__getattr__ takes 1 us for a "no"

    def attribute(name: str) -> Any:
        return state[name] if name in state else getattr(cls, name, None)

    if attribute("save_attention"):
        return "save_attention is set"
    if attribute("is_decoder"):
        return "is_decoder is set: keys and values are part of its result"
    position = attribute("position_embedding_type")
    if position not in (None, "absolute"):
        return f"position_embedding_type is {position!r}"
    size = module.attention_head_size
    if attribute("scaling") not in (None, size**-0.5):
        return "its scaling is not attention_head_size ** -0.5"
    if module._modules["key"].weight.shape[0] != module.num_attention_heads * size:
        return "num_attention_heads * attention_head_size is not the width of its keys"
    config = state.get("config")
    if config is not None:
        kind = getattr(config, "_attn_implementation", None)
        if kind not in PLAIN:
            return f"its attention implementation is {kind!r}"
        fields = getattr(config, "__dict__", {})  # properties of transformers take 3 us each
        for name in ("_output_attentions", "output_attentions", "output_cross_attentions"):
            if fields.get(name):
                return f"{name.lstrip('_')} is set in its configuration"
    return None


def call_reason(module: Any, given: dict[str, Any]) -> str | None:
    """Dropout, hooks and shapes: what may differ from call to call."""
    dropout = module._modules.get("dropout")
    if dropout is None:
        if module.training and getattr(module, "attention_dropout", 0) > 0:
            return "dropout is active"
    elif type(dropout) is nn.Dropout:
        if dropout.training and dropout.p > 0:
            return "dropout is active"
    elif type(dropout) is not nn.Identity:
        return f"dropout is a {type(dropout).__name__}"
    for hook in module._forward_hooks.values():
        if getattr(hook, "__name__", None) != RECORDER:
            return "a forward hook on it may read attention weights, keys or values"
    if _has_any_global_hook():
        return "hooks for all modules are registered"
    x, tokens = given["hidden_states"], given["encoder_hidden_states"]
    if not (isinstance(x, torch.Tensor) and isinstance(tokens, torch.Tensor)):
        return "hidden_states or encoder_hidden_states is not a tensor"
    if x.ndim != 3 or tokens.ndim != 3 or x.shape[0] != tokens.shape[0]:
        return "hidden_states and encoder_hidden_states are not [F, Q, C] and [F, N, D]"
    if tokens.shape[1] == 0:
        return "there are no tokens"
    return training_reason(module, x, tokens)


def training_reason(module: Any, x: torch.Tensor, tokens: torch.Tensor) -> str | None:
    """With a gradient to come, the op left to itself would do on a CPU what the original does, at
    sizes where absorbing the weights does not pay."""
    if x.device.type != "cpu" or registry.forced() or not torch.is_grad_enabled():
        return None
    weights = (module._modules[name].weight for name in ("key", "value"))
    if not any(t.requires_grad for t in (x, tokens, *weights)):
        return None
    width = module.num_attention_heads * module.attention_head_size
    if strategy.pays(x, width, tokens, None, module.num_attention_heads, None, training=True):
        return None
    return "a gradient is wanted, and at this size the original is as fast on a CPU"


def seen_tokens(
    module: Any, given: dict[str, Any]
) -> tuple[torch.Tensor | None, torch.Tensor | None, str | None]:
    """The mask ``[F, 1, 1 or Q, N]`` as bool ``[F, N]`` (None: all are seen), then a value bias to
    take instead of the module's (or None), then the reason if the mask cannot be served.

    The op knows tokens that are seen and tokens that are not, the same ones for every query. On the
    CPU the mask is looked at; elsewhere that would wait for the device, and a compiler could not
    follow: a mask that says more makes the result NaN there, through the bias.
    """
    mask, tokens = given["encoder_attention_mask"], given["encoder_hidden_states"]
    frames, length = tokens.shape[:2]
    if not isinstance(mask, torch.Tensor) or mask.requires_grad:
        return None, None, "encoder_attention_mask is not a tensor without gradient"
    if mask.ndim != 4 or mask.shape[0] not in (1, frames) or mask.shape[1] != 1:
        return None, None, "encoder_attention_mask is not [F, 1, 1 or Q, N]"
    if mask.shape[3] != length or mask.shape[2] == 0:
        return None, None, "encoder_attention_mask is not [F, 1, 1 or Q, N]"
    boolean = mask.dtype == torch.bool
    if boolean:
        config = module.__dict__.get("config")
        if getattr(config, "_attn_implementation", None) != "sdpa":
            return None, None, "encoder_attention_mask is boolean, not added to the scores"
    elif not mask.is_floating_point():
        return None, None, "encoder_attention_mask is neither bool nor floating"
    row = mask[:, 0, 0]  # [F or 1, N]
    seen = row if boolean else row == 0
    same = mask.shape[2] == 1 or mask.stride(2) == 0
    if tokens.device.type == "cpu" and not torch.compiler.is_compiling():
        if not same and not bool((mask == mask[:, :, :1]).all()):
            return None, None, "encoder_attention_mask differs between queries"
        if bool(seen.all()):
            return None, None, None
        if not boolean and not bool((seen | (row <= HIDDEN)).all()):
            return None, None, "encoder_attention_mask weighs tokens instead of hiding them"
        return seen.expand(frames, length), None, None
    bias = None
    if not (boolean and same):
        fits = torch.ones((), dtype=torch.bool, device=mask.device)
        fits = fits if boolean else (seen | (row <= HIDDEN)).all()
        fits = fits if same else fits & (mask == mask[:, :, :1]).all()
        value = module._modules["value"]
        zero = value.weight.new_zeros(value.weight.shape[0]) if value.bias is None else value.bias
        bias = zero + torch.where(fits, 0.0, float("nan")).to(zero.dtype)
    return seen.expand(frames, length), bias, None


# ---------------------------------------------------------------- what does it compute?


def try_out(cls: type[nn.Module], module: nn.Module | None = None) -> int:
    """Number of outputs of ``cls.forward``; ``Unserved`` if it is not the attention of the op.

    It runs in fp64 on the CPU on a stand-in: ``module``'s attributes, or for a class those that the
    known ones read, and small random linear layers. No hook runs, no global random number is drawn
    and the module's own weights, on whatever device, are not touched.
    """
    draw = functools.partial(
        torch.randn, generator=torch.Generator().manual_seed(0), dtype=torch.float64, device="cpu"
    )
    stand_in = cls.__new__(cls)
    nn.Module.__init__(stand_in)
    attributes = _typical() if module is None else copy.copy(module.__dict__)
    stand_in.__dict__.update(attributes)
    heads, size = (getattr(stand_in, name) for name in NUMBERS)
    layers = {name: _linear(draw, 5, heads * size) for name in LAYERS}
    stand_in.__dict__["_modules"] = {
        **attributes.get("_modules", {}),
        **layers,
        "dropout": nn.Identity(),
    }
    stand_in.__dict__["training"] = False
    x, tokens = draw(2, 3, 5), draw(2, 4, 5)
    seen = torch.tensor([[True, True, True, False], [True, False, True, True]])
    mask = torch.zeros(2, 1, 1, 4, dtype=torch.float64).masked_fill(~seen[:, None, None], -10000.0)
    key, value = layers["key"], layers["value"]
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        wanted = reference.cross_attention(
            layers["query"](x), tokens, None, key.weight, key.bias, value.weight, value.bias,
            heads, mask=seen,
        )  # fmt: skip
        try:
            out: Any = cls.forward(
                stand_in, x, encoder_hidden_states=tokens, encoder_attention_mask=mask
            )
        except Exception as error:
            first = (str(error).splitlines() or [""])[0]
            raise Unserved(f"tried out, it raised {type(error).__name__}: {first}") from error
    _check_outputs(out, wanted, form_of(cls.forward))
    return len(out)


def _check_outputs(out: Any, wanted: torch.Tensor, form: Form | None) -> None:
    if not isinstance(out, tuple) or not out or not isinstance(out[0], torch.Tensor):
        raise Unserved("it does not return a tuple that begins with a tensor")
    if out[0].shape != wanted.shape or not torch.allclose(out[0], wanted, rtol=1e-6, atol=1e-6):
        raise Unserved("it computes something else than softmax(q K^T / sqrt(d)) V")
    # transformers returns the weights unasked, or None where its kernel has none; a forward with an
    # argument for them returns them when asked only. Keys and values are kept for no one: the layer
    # around cross-attention drops them, and with a cache (past_key_value) the original runs.
    weights = form is not None and form.keywords
    for x in out[1:]:
        pair = isinstance(x, tuple) and len(x) == 2
        if not (x is None or pair or (weights and isinstance(x, torch.Tensor))):
            raise Unserved("it returns more than attention, its weights, and keys and values")


def _linear(draw: Callable[..., torch.Tensor], inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, device="meta")  # draws no global random number
    layer.weight = nn.Parameter(draw(outputs, inputs))
    layer.bias = nn.Parameter(draw(outputs))
    return layer


def _typical() -> dict[str, Any]:
    config = SimpleNamespace(
        _attn_implementation="eager", hidden_size=6, encoder_width=5, num_attention_heads=2,
        attention_probs_dropout_prob=0.0, position_embedding_type="absolute",
    )  # fmt: skip
    return {
        "config": config,
        "num_attention_heads": 2,
        "attention_head_size": 3,
        "all_head_size": 6,
        "scaling": 3**-0.5,
        "is_causal": False,
        "attention_dropout": 0.0,
        "position_embedding_type": "absolute",
        "save_attention": False,
        "is_decoder": False,
    }

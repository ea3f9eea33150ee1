# SPDX-License-Identifier: Apache-2.0
"""``accelerate``: ``cross_attention`` inside somebody else's model, and back (docs/accelerate.md).

A module is not changed but for its class, which becomes a subclass with another forward: its
``__dict__``, hence parameters, buffers, hooks and names, stays as it is, and copies and pickles are
of the original class.
"""

from __future__ import annotations

import copyreg
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import nn

from tdc_kernels import _drop_in
from tdc_kernels.nn import CrossAttention

ALREADY = "already accelerated"
CALLS_US = "calls tdc_kernels.cross_attention itself"

# By original class. The values live as long as a module has them, or somebody's undo.
_SUBCLASSES: weakref.WeakValueDictionary[type, type] = weakref.WeakValueDictionary()


class Replaced(NamedTuple):
    """One forward that was replaced."""

    name: str  # in the model; for a class its module and name
    cls: type  # the original class
    what: str


class Skipped(NamedTuple):
    """One forward that was left alone, or one call that was."""

    name: str
    cls: type
    reason: str


class Acceleration:
    """Record of an ``accelerate`` call: ``print`` it, ``undo`` it, or use it in a ``with``.

    Attributes:
        replaced: what runs ``tdc_kernels.cross_attention`` now.
        skipped: what looks like cross-attention and was left alone, and why.
    """

    def __init__(self, dry_run: bool = False) -> None:
        self.dry_run = dry_run
        self.replaced: list[Replaced] = []
        self.skipped: list[Skipped] = []
        self._modules: dict[str, nn.Module] = {}
        self._undo: list[Callable[[], str | None]] = []

    @property
    def fallbacks(self) -> list[Skipped]:
        """Calls so far that went to the original forward, one line per module and reason."""
        found = set()
        for name, cls, _ in self.replaced:
            module = self._modules.get(name)
            for key in [module] if module is not None else list(_drop_in.FELL_BACK):
                if isinstance(key, cls):
                    found |= {(name, cls, why) for why in _drop_in.FELL_BACK.get(key, ())}
        order = {name: i for i, (name, *_) in enumerate(self.replaced)}
        return [Skipped(*x) for x in sorted(found, key=lambda x: (order[x[0]], x[2]))]

    def undo(self) -> None:
        """Put everything back as it was; a second call does nothing.

        Raises:
            RuntimeError: something else changed a class or its forward in the meantime. It is left
                as it is, all others are put back.
        """
        failed = [reason for back in reversed(self._undo) if (reason := back()) is not None]
        self._undo.clear()
        if failed:
            raise RuntimeError(f"undo: {'; '.join(failed)}")

    def __enter__(self) -> Acceleration:
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()

    def __str__(self) -> str:
        verb = "would be replaced" if self.dry_run else "replaced"
        parts: dict[str, Any] = {
            f"{verb} by tdc_kernels.cross_attention": self.replaced,
            "left as they are": self.skipped,
            "calls that fell back": self.fallbacks,
        }
        lines = []
        for title, rows in parts.items():
            if rows or rows is self.replaced:
                lines.append(f"{title}: {len(rows) or 'nothing'}")
            widths = [max((len(cell) for cell in column), default=0) for column in _columns(rows)]
            for name, cls, text in rows:
                lines.append(f"  {name:{widths[0]}}  {cls.__name__:{widths[1]}}  {text}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<Acceleration: {len(self.replaced)} replaced, {len(self.skipped)} skipped>"


def _columns(rows: Any) -> tuple[list[str], list[str]]:
    return [r[0] for r in rows], [r[1].__name__ for r in rows]


def accelerate(target: nn.Module | type, *, dry_run: bool = False) -> Acceleration:
    """Let ``cross_attention`` do the cross-attention of a model, or of a class of attention.

    Recognised are the Q-Formers of BLIP-2, InstructBLIP and InstructBLIP-Video in transformers, and
    those built like LAVIS' (Video-LLaMA, TDC): by what their attention takes and computes, not by
    name. Weights are used where they are. Calls that the op does not do, such as active dropout or
    wanted attention weights, run the original forward; so does anything whose ``key`` or ``value``
    is no longer a plain ``nn.Linear`` (LoRA, hooks, quantisation).

    Args:
        target: a model, every matching module of which is served; or a class of attention, every
            instance of which is.
        dry_run: only say what would be done.

    Returns:
        What was replaced, what not and why, and the way back. Doing it twice changes nothing more.

    Raises:
        TypeError: ``target`` is neither.
        ValueError: nothing in it looks like cross-attention, or the class cannot be served.
    """
    done = Acceleration(dry_run)
    if isinstance(target, type) and issubclass(target, nn.Module):
        _patch_class(target, done)
    elif isinstance(target, nn.Module):
        _patch_modules(target, done)
    else:
        got = target.__name__ if isinstance(target, type) else type(target).__name__
        raise TypeError(f"target: expected an nn.Module or a class of them, got {got}")
    return done


# ---------------------------------------------------------------- a class


def _patch_class(cls: type, done: Acceleration) -> None:
    name, original = f"{cls.__module__}.{cls.__qualname__}", cls.forward  # type: ignore[attr-defined]
    if _drop_in.is_ours(original):
        done.skipped.append(Skipped(name, cls, ALREADY))
        return
    form = _drop_in.form_of(original)
    if form is None:
        raise ValueError(f"target: {name} is no cross-attention: looked for {_drop_in.LOOKED_FOR}")
    try:
        outputs = _drop_in.try_out(cls)
    except _drop_in.Unserved as reason:
        raise ValueError(f"target: {name} cannot be served: {reason}") from reason
    done.replaced.append(Replaced(name, cls, "every instance"))
    if done.dry_run:
        return
    own = "forward" in cls.__dict__
    forward = _drop_in.make_forward(original, form, outputs)
    cls.forward = forward  # type: ignore[attr-defined]

    def back() -> str | None:
        if cls.__dict__.get("forward") is not forward:
            return f"{name} has got another forward since"
        if own:
            cls.forward = original  # type: ignore[attr-defined]
        else:
            del cls.forward  # type: ignore[attr-defined]
        return None

    done._undo.append(back)


# ---------------------------------------------------------------- the modules of a model


def _patch_modules(model: nn.Module, done: Acceleration) -> None:
    found = [(name, module) for name, module in model.named_modules() if _looks_right(name, module)]
    # Self-attention is the same class. It is told by its width, or else by its name; where neither
    # says anything, every call is looked at.
    sure = [(name, module) for name, module in found if _surely_cross(name, module)]
    kinds = {_original(module) for _, module in sure}
    for name, module in found:
        if (name, module) in sure or _original(module) not in kinds:
            _patch_module(name or "(the module itself)", module, done)
    if not (done.replaced or done.skipped):
        raise ValueError(
            f"target: found no cross-attention in {type(model).__name__}:"
            f" looked for {_drop_in.LOOKED_FOR}"
        )


def _original(module: nn.Module) -> type:
    return getattr(type(module), "_tdc_class", type(module))


def _looks_right(name: str, module: nn.Module) -> bool:
    """Cross-attention that can be served, or nearly."""
    if isinstance(module, CrossAttention):
        return True
    if isinstance(module, torch.jit.ScriptModule):
        return False
    if not all(isinstance(module._modules.get(layer), nn.Module) for layer in _drop_in.LAYERS):
        return False
    if not all(isinstance(getattr(module, number, None), int) for number in _drop_in.NUMBERS):
        return False
    # A forward that does not fit is worth a line only where there is another source of tokens.
    return _drop_in.form_of(type(module).forward) is not None or _surely_cross(name, module)


def _widths_differ(module: nn.Module) -> bool:
    query, key = (getattr(module._modules[name], "in_features", None) for name in ("query", "key"))
    return query != key


def _surely_cross(name: str, module: nn.Module) -> bool:
    return isinstance(module, CrossAttention) or _widths_differ(module) or "cross" in name.lower()


def _patch_module(name: str, module: nn.Module, done: Acceleration) -> None:
    cls = type(module)
    reason, form, outputs = None, _drop_in.form_of(cls.forward), 0
    if isinstance(module, CrossAttention):
        reason = CALLS_US
    elif _drop_in.is_ours(cls.forward):
        reason = ALREADY
        cls = _original(module)
    elif "forward" in module.__dict__:
        reason = "it has a forward of its own (a hook of device_map, or a wrapper)"
    elif form is None:
        reason = f"its forward does not take {', '.join(_drop_in.TAKES)}"
    else:
        reason = _drop_in.module_reason(module)
    if reason is None:
        try:
            outputs = _drop_in.try_out(cls, module)
        except _drop_in.Unserved as unserved:
            reason = str(unserved)
    if reason is not None:
        done.skipped.append(Skipped(name, cls, reason))
        return
    assert form is not None
    layer: Any = module._modules["key"]
    heads, size = (getattr(module, number) for number in _drop_in.NUMBERS)
    what = f"{heads} heads of {size} over {layer.in_features} channels"
    done.replaced.append(Replaced(name, cls, what))
    done._modules[name] = module
    if not done.dry_run:
        _drop_in.FELL_BACK.pop(module, None)
        done._undo.append(_give_class(name, module, _subclass(cls, form, outputs)))


def _give_class(name: str, module: nn.Module, subclass: type) -> Callable[[], str | None]:
    original, module.__class__ = type(module), subclass  # type: ignore[assignment]

    def back() -> str | None:
        if type(module) is not subclass:
            return f"{name} has got another class since, {type(module).__name__}"
        module.__class__ = original  # type: ignore[assignment]
        return None

    return back


def _subclass(cls: Any, form: _drop_in.Form, outputs: int) -> type:
    """``cls`` with our forward, by the same name; copies and pickles of it are of ``cls``."""
    known: Any = _SUBCLASSES.get(cls)
    if known is not None and known.forward._tdc_original is cls.forward:
        return known

    def reduce(self: Any, protocol: Any) -> Any:
        function, arguments, *rest = super(subclass, self).__reduce_ex__(protocol)
        if function is copyreg.__newobj__ and arguments == (subclass,):  # type: ignore[attr-defined]
            # pickle lets this one make nothing but the object's own class; that one is the same
            function, arguments = copyreg._reconstructor, (cls, object, None)  # type: ignore
        return (function, tuple(cls if a is subclass else a for a in arguments), *rest)

    content = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        "__reduce_ex__": reduce,
        "forward": _drop_in.make_forward(cls.forward, form, outputs),
        "_tdc_class": cls,
    }
    subclass: Any = type(cls)(cls.__name__, (cls,), content)
    _SUBCLASSES[cls] = subclass
    return subclass

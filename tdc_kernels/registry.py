# SPDX-License-Identifier: Apache-2.0
"""Choice of the backend that runs a call, with reasons.

Every backend of every op is a ``torch.library`` operator ``tdc_<backend>::<op>``; the schema is the
same for all. Compiled backends have ``tdc_<backend>::<op>_backward`` beside it, which the op's
``autograd.Function`` calls; plain PyTorch differentiates itself. A call takes the first capable
backend in the order of ``BACKENDS`` (said once per op at log level INFO), or exactly the one asked
for: by argument, else by ``use_backend``, else by the environment. A backend asked for by name that
cannot run is an error saying why; nothing is caught and retried elsewhere. Derivatives of
``torch.func`` and forward mode are the reference's.

Environment variables (all there are in this package):

====================  =============================================================================
``TDC_BACKEND``       a backend's name, or ``auto`` (default); read once, on import of the package
``TDC_CHECK_VALUES``  ``1`` = frame numbers, lengths and prefix sums on a GPU are checked as on a
                      CPU, which waits for it; read once, on import. Without it no kernel reads or
                      writes outside of its tensors either, but nobody says what is wrong
``TDC_BUILD_NATIVE``  when installing: ``1`` = failing to build is an error, ``0`` = do not build,
                      unset = build if torch, pybind11 and a C++ compiler are there
``TDC_BUILD_CUDA``    when installing: ``1`` and ``0`` as above, unset = build if nvcc and a CUDA
                      build of torch are there
``TDC_CUDA_ARCHS``    when installing: the GPUs to build for, ``80;90a;100a`` unless set; the first
                      also as PTX, for the others
====================  =============================================================================
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import forward_ad

logger = logging.getLogger(__name__)

# In order of automatic choice. "torch" is plain PyTorch arranged for speed; "reference" is plain
# PyTorch that reads like the formula, the definition of correct.
BACKENDS = ("cuda", "triton", "native", "torch", "reference")
NOT_IMPLEMENTED = "not implemented in this version"

# Kind of a device, or one CUDA device ("cuda:1") -> None or the reason why not; cached.
Requires = Callable[[str], "str | None"]
Accepts = Callable[..., "str | None"]  # the op's arguments -> None or why not; asked per call


@dataclass(frozen=True)
class Entry:
    """One backend of one op: the operator to call and what it needs."""

    handle: Any  # torch._ops.OpOverload
    backward: Any | None  # the operator of the gradient, where there is one
    opaque: bool  # autograd does not see through the handle
    requires: Requires | None  # None: runs on every device
    accepts: Accepts | None  # None: takes every dtype and shape the op's contract allows
    pays: Accepts | None = None  # asked in automatic choice only; None: always worth taking


@dataclass(frozen=True)
class Row:
    """One line of the op x backend table."""

    op: str
    backend: str
    available: bool
    reason: str  # why not; empty where available


@dataclass(frozen=True)
class Schema:
    """The part that all backends of an op share."""

    forward: str
    backward: str | None
    fake: Callable[..., Any] | None
    fake_backward: Callable[..., Any] | None
    differentiable: bool  # in the sense of mathematics


_ENTRIES: dict[str, dict[str, Entry]] = {}
_SCHEMAS: dict[str, Schema] = {}
_LIBRARIES: dict[str, torch.library.Library] = {}  # kept alive: registrations die with the object
_AVAILABLE: dict[tuple[str, str], tuple[str, ...]] = {}
_ANNOUNCED: set[tuple[str, str]] = set()


def _check_name(name: str, origin: str) -> str | None:
    if name == "auto":
        return None
    if name not in BACKENDS:
        raise ValueError(f"{origin}: expected 'auto' or one of {', '.join(BACKENDS)}, got {name!r}")
    return name


_forced: str | None = _check_name(os.environ.get("TDC_BACKEND") or "auto", "TDC_BACKEND")


# ---------------------------------------------------------------- registration


def define(
    op: str,
    schema: str,
    fake: Callable[..., Any] | None = None,
    *,
    backward: str | None = None,
    fake_backward: Callable[..., Any] | None = None,
    differentiable: bool = True,
) -> None:
    """Declare an op.

    ``schema`` is what follows the name, e.g. ``"(Tensor x) -> Tensor"``; ``backward`` the same for
    the gradient. The fakes compute the outputs' shapes for backends that nothing can look into.
    ``differentiable``: whether there is a derivative, in the sense of mathematics.
    """
    _SCHEMAS[op] = Schema(schema, backward, fake, fake_backward, differentiable)
    _ENTRIES[op] = {}


def implement(
    op: str,
    backend: str,
    kernel: Callable[..., Any],
    *,
    requires: Requires | None = None,
    accepts: Accepts | None = None,
    pays: Accepts | None = None,
) -> None:
    """Add a backend made of aten calls: autograd, torch.compile and torch.export look into it."""
    library = _library(backend)
    library.define(op + _SCHEMAS[op].forward)
    library.impl(op, kernel, "CompositeImplicitAutograd")
    _ENTRIES[op][backend] = Entry(_handle(backend, op), None, False, requires, accepts, pays)


def implement_compiled(
    op: str,
    backend: str,
    kernel: Callable[..., Any] | None = None,
    kernel_backward: Callable[..., Any] | None = None,
    *,
    keys: tuple[str, ...] = (),
    requires: Requires | None = None,
    accepts: Accepts | None = None,
    pays: Accepts | None = None,
) -> None:
    """Add a backend that nothing looks into, known to compilers by the op's fakes.

    Without a ``kernel`` a compiled library registers it when loaded, else it is registered for the
    dispatch ``keys``.
    """
    schema = _SCHEMAS[op]
    parts = [(op, schema.forward, schema.fake, kernel)]
    if schema.backward is not None:
        parts.append((f"{op}_backward", schema.backward, schema.fake_backward, kernel_backward))
    library = _library(backend)
    for name, text, fake, function in parts:
        library.define(name + text)
        torch.library.register_fake(f"tdc_{backend}::{name}", fake, lib=library)
        if schema.differentiable:
            library.impl(name, _without_derivative(backend, name), "Autograd")
        for key in keys:
            if function is not None:
                library.impl(name, function, key)
    handles = [_handle(backend, name) for name, *_ in parts]
    backward = handles[1] if schema.backward is not None else None
    _ENTRIES[op][backend] = Entry(handles[0], backward, True, requires, accepts, pays)


def _without_derivative(backend: str, name: str) -> Callable[..., Any]:
    """The operator below autograd, or an error where a derivative is wanted: alone it has none, and
    PyTorch would give zeros for it. The op's public function has."""
    handle = None

    def kernel(*args: Any) -> Any:
        nonlocal handle
        if _wants_gradient(args) or _has_tangent(args):
            raise RuntimeError(
                f"tdc_{backend}::{name}: the operator alone has no derivative, "
                f"tdc_kernels.{name.removesuffix('_backward')} has"
            )
        handle = handle or _handle(backend, name)
        with torch._C._AutoDispatchBelowAutograd():
            return handle(*args)

    return kernel


def _library(backend: str) -> torch.library.Library:
    if backend not in _LIBRARIES:
        _LIBRARIES[backend] = torch.library.Library(f"tdc_{backend}", "DEF")
    return _LIBRARIES[backend]


def _handle(backend: str, op: str) -> Any:
    return getattr(getattr(torch.ops, f"tdc_{backend}"), op).default


# ---------------------------------------------------------------- choice
# The functions marked constant run for real while torch.compile traces (they load libraries and
# log) and leave a constant behind; what may change between calls, the forced backend, is read in
# traced code and therefore guarded.


def constant(function: Callable[..., Any]) -> Any:
    """``torch.compiler.assume_constant_result`` without its 3 s import of dynamo."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant
def _refusal(op: str, backend: str, device: str) -> str | None:
    """None if ``backend`` can run ``op`` on this kind of device, else the reason."""
    if op not in _ENTRIES:
        raise ValueError(f"op: expected one of {', '.join(_ENTRIES)}, got {op!r}")
    entry = _ENTRIES[op].get(backend)
    if entry is None:
        return NOT_IMPLEMENTED
    return entry.requires(device) if entry.requires is not None else None


@constant
def _available(op: str, device: str) -> tuple[str, ...]:
    """The backends that can run ``op`` on this kind of device, best first."""
    key = (op, device)
    if key not in _AVAILABLE:
        _AVAILABLE[key] = tuple(b for b in BACKENDS if _refusal(op, b, device) is None)
    return _AVAILABLE[key]


@constant
def _announce(op: str, backend: str) -> None:
    if (op, backend) not in _ANNOUNCED:
        _ANNOUNCED.add((op, backend))
        logger.info("%s runs on backend %s", op, backend)


def choose(op: str, backend: str | None, *args: Any) -> str:
    """The name of the backend that runs ``op`` with these arguments: the one asked for, or the
    first capable one. The device of the first argument decides.

    Raises:
        ValueError: no backend of that name.
        RuntimeError: the one asked for cannot run this call.
    """
    wanted = backend if backend is not None else _forced
    device = args[0].device
    device = str(device) if device.type == "cuda" else device.type
    if wanted is None or wanted == "auto":
        entries = _ENTRIES[op]
        for name in ("reference",) if transformed(args) else _available(op, device):
            entry = entries[name]
            if all(ask is None or ask(*args) is None for ask in (entry.accepts, entry.pays)):
                _announce(op, name)
                return name
        raise RuntimeError(f"{op}: no backend can run this call on device {device!r}")
    _check_name(wanted, "backend")
    reason = _refusal(op, wanted, device)
    if reason is None:
        entry = _ENTRIES[op][wanted]
        reason = entry.accepts(*args) if entry.accepts is not None else None
        if entry.opaque and transformed(args):
            reason = "it has no derivative for torch.func and forward mode, 'reference' has"
    if reason is not None:
        raise RuntimeError(f"backend {wanted!r} cannot run {op}: {reason}")
    return wanted


def call(
    op: str,
    backend: str | None,
    *args: Any,
    function: type[torch.autograd.Function] | None = None,
) -> Any:
    """Run ``op`` on the backend asked for, or on the first capable one.

    ``function`` is taken instead of the bare operator where a gradient is wanted and the operator
    does not differentiate itself: ``function.apply(backend, *args)``. Safe under
    ``torch.compile(fullgraph=True)``.
    """
    name = choose(op, backend, *args)
    entry = _ENTRIES[op][name]
    if function is not None and entry.opaque and _wants_gradient(args):
        return function.apply(name, *args)
    inside = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    if not entry.opaque or inside:
        return entry.handle(*args)
    # No derivative is wanted: the operator's check for one would cost 19 us again.
    with torch._C._AutoDispatchBelowAutograd():
        return entry.handle(*args)


def _wants_gradient(args: tuple[Any, ...]) -> bool:
    tensors = (a for a in args if isinstance(a, torch.Tensor))
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def transformed(args: tuple[Any, ...]) -> bool:
    """True where a derivative is wanted that no ``autograd.Function`` of this package has: one of
    ``torch.func``, or forward-mode. A bare operator would have a tangent of zero."""
    if torch._C._are_functorch_transforms_active():
        return forward_ad._current_level >= 0 or _wants_gradient(args)
    return _has_tangent(args)


def _has_tangent(args: tuple[Any, ...]) -> bool:
    if forward_ad._current_level < 0:
        return False
    tensors = (a for a in args if isinstance(a, torch.Tensor))
    return any(forward_ad.unpack_dual(x).tangent is not None for x in tensors)


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Use one backend for every op called inside: a name of ``BACKENDS``, or ``"auto"``.

    The setting is process-wide (torch.compile cannot trace context variables): set it outside of
    threads. A call's own ``backend=`` argument still wins, and the environment variable loses.
    """
    global _forced
    before, _forced = _forced, _check_name(name, "use_backend")
    try:
        yield
    finally:
        _forced = before


# ---------------------------------------------------------------- what there is


def forced() -> bool:
    """True where ``use_backend`` or ``TDC_BACKEND`` names a backend."""
    return _forced not in (None, "auto")


def backends() -> tuple[str, ...]:
    """Names of all backends, in the order of automatic choice."""
    return BACKENDS


def ops() -> tuple[str, ...]:
    """Names of all ops."""
    return tuple(_ENTRIES)


def entry(op: str, backend: str) -> Entry:
    """The registration of one backend of one op (tests and benchmarks want the operator)."""
    return _ENTRIES[op][backend]


def table(device: str | torch.device = "cpu") -> list[Row]:
    """One row per op and backend: can it run on this device ("cuda": on the current one), and if
    not, why not."""
    rows = []
    for op in _ENTRIES:
        for backend in BACKENDS:
            reason = _refusal(op, backend, str(device))
            rows.append(Row(op, backend, reason is None, reason or ""))
    return rows

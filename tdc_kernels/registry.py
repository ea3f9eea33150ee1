# SPDX-License-Identifier: Apache-2.0
"""Which backend runs a call, and why.

Every backend of every op is a ``torch.library`` operator ``tdc_<backend>::<op>``; the schema is the
same for all of them. A call takes the first capable backend in the order of ``BACKENDS`` (said once
per op at log level INFO), or exactly the one asked for: by argument, else by ``use_backend``, else
by the environment. A backend asked for by name that cannot run is an error saying why; nothing is
caught and retried elsewhere.

Environment variables (all there are in this package):

====================  =============================================================================
``TDC_BACKEND``       a backend's name, or ``auto`` (default); read once, on import of the package
``TDC_BUILD_NATIVE``  when installing: ``1`` = failing to build is an error, ``0`` = do not build,
                      unset = build if torch, pybind11 and a C++ compiler are there
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

logger = logging.getLogger(__name__)

# In order of automatic choice. "torch" is plain PyTorch arranged for speed; "reference" is plain
# PyTorch that reads like the formula, the definition of correct.
BACKENDS = ("cuda", "triton", "native", "torch", "reference")
NOT_IMPLEMENTED = "not implemented in this version"

Requires = Callable[[str], "str | None"]  # device type -> None or the reason why not; cached
Accepts = Callable[..., "str | None"]  # the op's arguments -> None or why not; asked per call


@dataclass(frozen=True)
class Entry:
    """One backend of one op: the operator to call and what it needs."""

    handle: Any  # torch._ops.OpOverload
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


_ENTRIES: dict[str, dict[str, Entry]] = {}
_SCHEMAS: dict[str, str] = {}
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


def define(op: str, schema: str) -> None:
    """Declare an op. ``schema`` is what follows the name, e.g. ``"(Tensor x) -> Tensor"``."""
    _SCHEMAS[op] = schema
    _ENTRIES[op] = {}


def implement(
    op: str,
    backend: str,
    kernel: Callable[..., Any] | None = None,
    *,
    fake: Callable[..., Any] | None = None,
    requires: Requires | None = None,
    accepts: Accepts | None = None,
    pays: Accepts | None = None,
) -> None:
    """Add a backend to an op.

    A ``kernel`` made of aten calls is registered CompositeImplicitAutograd, so that autograd,
    torch.compile and torch.export see through it. Without one the kernel comes from a compiled
    library, which registers it for its device, and ``fake`` computes the output's shape.
    """
    if backend not in _LIBRARIES:
        _LIBRARIES[backend] = torch.library.Library(f"tdc_{backend}", "DEF")
    library = _LIBRARIES[backend]
    library.define(op + _SCHEMAS[op])
    if kernel is not None:
        library.impl(op, kernel, "CompositeImplicitAutograd")
    if fake is not None:
        torch.library.register_fake(f"tdc_{backend}::{op}", fake, lib=library)
    handle = getattr(getattr(torch.ops, f"tdc_{backend}"), op).default
    _ENTRIES[op][backend] = Entry(handle, requires, accepts, pays)


# ---------------------------------------------------------------- choice
# The functions marked constant run for real while torch.compile traces (they load libraries and
# log) and leave a constant behind; what may change between calls, the forced backend, is read in
# traced code and therefore guarded.


def _constant(function: Callable[..., Any]) -> Any:
    """What ``torch.compiler.assume_constant_result`` does, without its 3 s import of dynamo."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@_constant
def _refusal(op: str, backend: str, device: str) -> str | None:
    """None if ``backend`` can run ``op`` on this kind of device, else the reason."""
    if op not in _ENTRIES:
        raise ValueError(f"op: expected one of {', '.join(_ENTRIES)}, got {op!r}")
    entry = _ENTRIES[op].get(backend)
    if entry is None:
        return NOT_IMPLEMENTED
    return entry.requires(device) if entry.requires is not None else None


@_constant
def _available(op: str, device: str) -> tuple[str, ...]:
    """The backends that can run ``op`` on this kind of device, best first."""
    key = (op, device)
    if key not in _AVAILABLE:
        _AVAILABLE[key] = tuple(b for b in BACKENDS if _refusal(op, b, device) is None)
    return _AVAILABLE[key]


@_constant
def _announce(op: str, backend: str) -> None:
    if (op, backend) not in _ANNOUNCED:
        _ANNOUNCED.add((op, backend))
        logger.info("%s runs on backend %s", op, backend)


def call(op: str, backend: str | None, *args: Any) -> Any:
    """Run ``op`` on the backend asked for, or on the first capable one.

    The device of the first argument decides. Safe under ``torch.compile(fullgraph=True)``.
    """
    wanted = backend if backend is not None else _forced
    device = args[0].device.type
    if wanted is None or wanted == "auto":
        entries = _ENTRIES[op]
        for name in _available(op, device):
            entry = entries[name]
            if all(ask is None or ask(*args) is None for ask in (entry.accepts, entry.pays)):
                _announce(op, name)
                return entry.handle(*args)
        raise RuntimeError(f"{op}: no backend can run this call on device {device!r}")
    _check_name(wanted, "backend")
    reason = _refusal(op, wanted, device)
    if reason is None:
        entry = _ENTRIES[op][wanted]
        reason = entry.accepts(*args) if entry.accepts is not None else None
        if reason is None:
            return entry.handle(*args)
    raise RuntimeError(f"backend {wanted!r} cannot run {op}: {reason}")


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
    """One row per op and backend: can it run on this device, and if not, why not."""
    kind = torch.device(device).type
    rows = []
    for op in _ENTRIES:
        for backend in BACKENDS:
            reason = _refusal(op, backend, kind)
            rows.append(Row(op, backend, reason is None, reason or ""))
    return rows

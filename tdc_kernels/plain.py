# SPDX-License-Identifier: Apache-2.0
"""Whether a layer is no more than its weights, so that reading these equals calling the layer.

LoRA, quantisation, pruning, parametrisations, hooks and sharding (FSDP) all change what a call does
or where the weights are between calls. Ops that take weights ask here first; where the answer is
no, the layer is called.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook

_TENSORS = (nn.Parameter, torch.Tensor, type(None))  # and no subclass: DTensor, quantised


def linear_reason(name: str, layer: nn.Module | None) -> str | None:
    """Why the weights of ``layer`` must not be read, or None."""
    if type(layer) is not nn.Linear:  # LoRA, quantised and parametrised layers are subclasses
        return f"{name} is not a plain nn.Linear but {type(layer).__name__}"
    if _is_hooked(layer):
        return f"{name} has hooks or a forward of its own"
    for kind, x in (("weight", layer.weight), ("bias", layer.bias)):
        if type(x) not in _TENSORS:
            return f"{name}.{kind} is a {type(x).__name__}"
    return None


def is_plain_linear(*layers: nn.Module | None) -> bool:
    """Whether the weights of all these layers may be read."""
    if _has_any_global_hook():
        return False
    return all(linear_reason("", layer) is None for layer in layers)


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a ``kind`` may be used without calling it: no other class, no hooks, its own
    parameters plain tensors. Its submodules are not looked at."""
    return (
        type(module) is kind
        and not _is_hooked(module)
        and not _has_any_global_hook()
        and all(type(x) in _TENSORS for x in module._parameters.values())
    )


def is_plain_tree(module: nn.Module) -> bool:
    """Whether a module and all below it are no more than torch's layers, or of the module's own
    package, and their parameters: whether a copy with the same parameters does the same."""
    home = type(module).__module__.partition(".")[0]
    return all(
        type(part).__module__.startswith((f"{home}.", "torch.nn.modules."))
        and "parametrizations" not in part._modules
        and is_plain(part, type(part))
        for part in module.modules()
    )


def _is_hooked(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )

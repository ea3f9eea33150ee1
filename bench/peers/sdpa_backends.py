# SPDX-License-Identifier: Apache-2.0
"""``cross_attention`` by each of the attention kernels that PyTorch has on a GPU: whichever of them
does not take a dtype or a shape says so."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from . import attention

KERNELS = {
    "sdpa-flash": SDPBackend.FLASH_ATTENTION,
    "sdpa-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "sdpa-cudnn": SDPBackend.CUDNN_ATTENTION,
}


def _by(kernel: SDPBackend, *args: Any) -> Tensor:
    with sdpa_kernel(kernel):
        return attention.sdpa(*args)


PEERS: Mapping[str, Callable[..., Tensor]] = {
    name: functools.partial(_by, kernel) for name, kernel in KERNELS.items()
}

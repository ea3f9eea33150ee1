# SPDX-License-Identifier: Apache-2.0
"""The released towers' sizes, layers apart."""

from __future__ import annotations

from typing import Any

DINOV2_GIANT: dict[str, Any] = {
    **{"hidden_size": 1536, "num_attention_heads": 24, "use_swiglu_ffn": True},
    **{"patch_size": 14, "image_size": 518},
}
SIGLIP_SO400M: dict[str, Any] = {
    **{"hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16},
    **{"patch_size": 14, "image_size": 384},
}

# SPDX-License-Identifier: Apache-2.0
"""The compressor's exact speedups: the same context tokens, up to rounding, for less work.

docs/compressor.md has what each was measured to bring, those that are off by default included.
"""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Speedups:
    """Which of them the compressor takes: ``compressor.speedups = Speedups(fold_audio=False)``."""

    one_call: bool = True  # the Q-Former once for all dynamic frames, not once per window
    share_first_layer: bool = True  # up to its cross-attention, layer 0 once per anchor
    skip_dead_rows: bool = True  # the last layer computes no text rows: nothing reads them
    pieces: bool = True  # CPU: self-attention and feed-forward on as many rows as the cache holds
    fold_audio: bool = True  # audio tokens keep their own width; weights take the projection in
    fold_projector: bool = True  # dynamic frames stay before the visual projector's last layer
    fp32_on_cpu: bool = True  # half types in fp32 where the CPU has no matrix units for them
    cache: bool = True  # question-independent parts serve the next question about the video
    cuda_graphs: bool = False  # the Q-Former as one launch on a GPU; off until it is measured
    # Keys and values of all layers by one matrix product, kept for the next question: the second
    # question then costs no cross-attention products, but the first one costs three times as many,
    # and the memory is M * N * layers * 2 * Dq values (1.4 GB in fp32 at the paper's size).
    joint_keys_values: bool = False

    @classmethod
    def none(cls) -> Speedups:
        """The plain way, for comparisons."""
        return cls(**{field.name: False for field in fields(cls)})

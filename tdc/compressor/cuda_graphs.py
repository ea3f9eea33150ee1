# SPDX-License-Identifier: Apache-2.0
"""CUDA graphs of a function whose inputs come in many sizes: one graph per bucket of sizes.

Replaying a graph costs one launch where the Q-Former has some 250. A graph's inputs have fixed
addresses and sizes, so inputs are copied into buffers of the next larger bucket; what the padding
computes is cut off.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Inputs = dict[str, "Tensor | None"]
Function = Callable[[Inputs], Tensor]
Capture = Callable[[Function, Inputs], tuple[Callable[[], None], Tensor]]

MOST = 4  # graphs kept: each holds its inputs, at the paper's size 250 MB of bf16 tokens


def bucket(size: int) -> int:
    """The next of 0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, ...: at most a quarter
    more than asked for from 32 on."""
    if size <= 64:
        return -(-size // 8) * 8
    step = 1 << ((size - 1).bit_length() - 3)
    return -(-size // step) * step


def capture_cuda(function: Function, inputs: Inputs) -> tuple[Callable[[], None], Tensor]:
    """Record ``function(inputs)`` on the inputs' device."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # kernels load and libraries allocate outside of the capture
        function(inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = function(inputs)
    return graph.replay, out


@dataclass
class _Graph:
    inputs: Inputs
    replay: Callable[[], None]
    out: Tensor


class BucketedGraphs:
    """``function`` through CUDA graphs.

    Args:
        function: a dictionary of tensors to one tensor; must launch the same kernels for the same
            sizes and never wait for the device.
        padded: name of an input -> how many of its leading dimensions go up to a bucket. Padding
            is zeros: what the function does with it must not reach the rest.
        rows: the input with as many entries as the output has.
        capture: records the function; tests replace it.
    """

    def __init__(
        self,
        function: Function,
        padded: Mapping[str, int],
        rows: str,
        capture: Capture = capture_cuda,
    ) -> None:
        self.function, self.padded, self.rows, self.capture = function, padded, rows, capture
        self._graphs: OrderedDict[object, _Graph] = OrderedDict()

    def __call__(self, inputs: Inputs) -> Tensor:
        """``function(inputs)``, in memory of its own."""
        shapes = {n: self._shape(n, x) for n, x in inputs.items() if x is not None}
        key = tuple((n, shape, inputs[n].dtype) for n, shape in shapes.items())  # type: ignore[union-attr]
        graph = self._graphs.get(key)
        if graph is None:
            while len(self._graphs) >= MOST:
                self._graphs.popitem(last=False)  # the one not used for longest
            graph = self._graphs[key] = self._record(inputs, shapes)
        self._graphs.move_to_end(key)
        _fill(graph.inputs, inputs)
        graph.replay()
        rows = inputs[self.rows]
        assert rows is not None
        return graph.out[: len(rows)].clone()

    def _shape(self, name: str, x: Tensor) -> tuple[int, ...]:
        count = self.padded.get(name, 0)
        return *(bucket(n) for n in x.shape[:count]), *x.shape[count:]

    def _record(self, inputs: Inputs, shapes: Mapping[str, tuple[int, ...]]) -> _Graph:
        static: Inputs = {
            n: None if x is None else x.new_zeros(shapes[n]) for n, x in inputs.items()
        }
        _fill(static, inputs)
        return _Graph(static, *self.capture(self.function, static))


def _fill(static: Inputs, inputs: Inputs) -> None:
    for name, x in inputs.items():
        buffer = static[name]
        if x is None or buffer is None:
            continue
        if buffer.shape != x.shape:
            buffer.zero_()
        buffer[tuple(slice(n) for n in x.shape)].copy_(x)

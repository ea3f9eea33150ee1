# SPDX-License-Identifier: Apache-2.0
"""How a GPU would be timed, on a stand-in for ``torch.cuda`` with a clock of its own."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch

from bench.timing import timers, turns

CALL_S = 10e-6


class Device:
    """Counts calls, eager and replayed; events read its clock."""

    def __init__(self) -> None:
        self.clock_s, self.seen, self.captured = 0.0, [], 0
        self.capturing, self.breaks = False, False

    def call(self, number: int) -> None:
        if self.capturing:
            self.captured += 1
            if self.breaks:
                raise RuntimeError("operation not permitted when stream is capturing\nmore")
        else:
            self.seen.append(number)
            self.clock_s += CALL_S

    @contextmanager
    def graph(self, _: object):
        self.capturing = True
        try:
            yield
        finally:
            self.capturing = False

    def replay(self) -> None:
        self.clock_s += self.captured * CALL_S / 2  # half the time: no launches

    def event(self, **_: object) -> SimpleNamespace:
        found = SimpleNamespace(at=0.0, synchronize=lambda: None)
        found.record = lambda: setattr(found, "at", self.clock_s)
        found.elapsed_time = lambda stop: 1e3 * (stop.at - found.at)
        return found


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    device = Device()
    stream = SimpleNamespace(wait_stream=lambda other: None)
    replacements = {
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": lambda _: nullcontext(),
        "CUDAGraph": lambda: SimpleNamespace(replay=device.replay),
        "graph": device.graph,
        "Event": device.event,
        "synchronize": lambda: None,
    }
    for name, replacement in replacements.items():
        monkeypatch.setattr(torch.cuda, name, replacement)
    return device


def test_short_calls_are_captured_and_walk_through_all_inputs(device: Device) -> None:
    found = timers.sampler(device.call, [(0,), (1,), (2,)], "cuda")
    assert found.timer == "graph" and device.captured == 3
    assert device.seen[:6] == [0, 1, 2, 0, 1, 2]
    assert found.loops % 3 == 0 and found.loops * CALL_S / 2 >= timers.SAMPLE_S
    assert timers.take(found)[0] == pytest.approx(CALL_S / 2)


def test_what_cannot_be_captured_is_timed_by_events(
    device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    device.breaks = True
    with caplog.at_level("INFO"):
        found = timers.sampler(device.call, [(0,), (1,)], "cuda")
    assert found.timer == "events"
    assert caplog.messages == ["no CUDA graph: operation not permitted when stream is capturing"]
    assert timers.take(found)[0] == pytest.approx(CALL_S)


def test_long_calls_are_not_captured(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timers, "GRAPH_BELOW_S", CALL_S / 2)
    assert timers.sampler(device.call, [(0,)], "cuda").timer == "events"
    assert device.captured == 0


def test_copies_are_inputs_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda: SimpleNamespace(L2_cache_size=100)
    )
    args = (torch.ones(10, requires_grad=True), 3)
    found = timers.copies(args, "cuda")
    assert len(found) == 6  # 6 x 40 bytes are more than twice 100
    assert found[0] is args and all(copy[1] == 3 for copy in found)
    assert len({copy[0].data_ptr() for copy in found}) == 6
    assert all(copy[0].is_leaf and copy[0].requires_grad for copy in found)
    assert timers.copies(args, "cpu") == [args]


def test_overhead_waits_only_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(turns, "synchronize", lambda: order.append("wait"))
    microseconds = timers.overhead_us(lambda x: order.append(x), ("call",), calls=2, rounds=2)
    assert order == ["wait", "call", "call", "wait", "call", "call", "wait"]
    assert 0 < microseconds < 1000

# SPDX-License-Identifier: Apache-2.0
"""The ops' benchmarks at tiny sizes: providers agree, and whoever does not is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bench import providers
from bench.benchmark import Case, Cost, Op, Refused, op_names, ops
from bench.timing import timers
from bench.timing.ceilings import Ceilings, measure

PEERS = ("release", "eager")
SLOW = {torch.float32: 1.0, torch.bfloat16: 1.0}


def benchmark(name: str) -> Op:
    (op,) = ops([name])
    return op


def prepare(found: Op, case: Case, **options) -> providers.Prepared:
    with torch.set_grad_enabled(case.backward):
        return providers.prepare(found, case.tiny(), "cpu", wanted=PEERS, **options)


def dear(op: str, case: Case) -> bool:
    """Half precision and gradients take 2 to 5 s a case; fp32 forward stays."""
    return op == "cross_attention" and (case.dtype != torch.float32 or case.backward)


@pytest.mark.parametrize(
    ("op", "case"),
    [
        pytest.param(op, case, id=f"{op}-{case}", marks=[pytest.mark.slow] * dear(op, case))
        for op in op_names()
        for case in benchmark(op).cases
    ],
)
def test_all_providers_agree(op: str, case: Case) -> None:
    prepared = prepare(benchmark(op), case)
    assert not prepared.skipped
    assert list(prepared.calls) == [*PEERS, *providers.backends(op, "cpu")]
    assert prepared.automatic in providers.backends(op, "cpu")


def test_every_op_of_the_task_has_a_benchmark() -> None:
    assert {
        *("frame_similarity", "scene_boundaries", "segment_scenes"),
        *("anchor_queries", "pack_context", "cross_attention"),
    } <= set(op_names())


def test_the_interpreter_is_never_timed() -> None:
    assert not any("triton" in providers.backends(op, "cpu") for op in op_names())


@pytest.mark.parametrize("op", op_names())
def test_a_wrong_output_is_refused(op: str) -> None:
    found = benchmark(op)

    def wrong(case: Case):
        right = found.peers(case)["eager"]

        def shifted(*args):
            out = right(*args)
            return tuple(x + 1 for x in out) if isinstance(out, tuple) else out + 1

        return {**found.peers(case), "eager": shifted}

    with pytest.raises(Refused, match=f"{op} small.*: eager differs from the reference"):
        prepare(
            replace(found, peers=wrong), next(case for case in found.cases if case.name == "small")
        )


def test_a_wrong_gradient_is_refused() -> None:
    found = benchmark("pack_context")
    case = next(case for case in found.cases if case.backward)
    wrong = replace(found, cotangent=lambda case, name, out: torch.full_like(out, len(name)))
    with pytest.raises(Refused, match="differs from the reference"):
        prepare(wrong, case)


INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("got", "expected", "message"),
    [
        ([1.0, INF], [1.0, INF], None),
        ([1.0, 2.00001], [1.0, 2.0], None),
        ([1.0, 2.1], [1.0, 2.0], "by 1.0e-01"),
        ([1.0, NAN], [1.0, 2.0], "by inf"),
        ([1.0, 2.0], [1.0, INF], "by inf"),
        ([1.0], [1.0, 2.0], "shapes"),
        ([1, 3], [1, 2], "1 of 2 integers"),
    ],
)
def test_difference(got: list, expected: list, message: str | None) -> None:
    found = providers.difference((torch.tensor(got),), (torch.tensor(expected),), 1e-4)
    assert found is None if message is None else found is not None and found.startswith(message)


def test_what_does_not_fit_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    found = benchmark("frame_similarity")
    size = timers.size(found.arguments(found.cases[0].tiny(), "cpu"))
    monkeypatch.setattr(providers, "MEMORY", 2 * size)
    prepared = prepare(found, found.cases[0])
    assert list(prepared.skipped) == ["release", "reference"]
    assert "GB of memory" in prepared.skipped["release"]


def test_slow_matrix_products_are_a_reason() -> None:
    found = benchmark("anchor_queries")
    prepared = prepare(found, found.cases[0], matmul=SLOW)
    assert {"release", "eager", "reference"} <= set(prepared.skipped)
    assert "float32 matrix products" in prepared.skipped["eager"]


def test_a_backend_that_declines_has_a_reason() -> None:
    found = benchmark("scene_boundaries")

    def ours(*args, backend=None):
        if backend == "reference":
            raise RuntimeError("backend 'reference' cannot run scene_boundaries: not today")
        return found.ours(*args, backend=backend)

    declining = replace(found, ours=ours, expected=found.ours)
    prepared = prepare(declining, found.cases[0])
    assert prepared.skipped["reference"].endswith("not today")


def test_any_other_error_of_ours_is_one() -> None:
    found = benchmark("scene_boundaries")

    def ours(*args, backend=None):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        prepare(replace(found, ours=ours, expected=found.ours), found.cases[0])


def test_bytes_and_operations_by_hand() -> None:
    case = Case("by hand", (3,), tokens=2, width=4)
    similarity = benchmark("frame_similarity")
    assert similarity.cost(case) == Cost(read=96, written=8, flops=96)
    half = replace(case, dtype=torch.bfloat16, backward=True)
    assert similarity.cost(half) == Cost(read=112, written=56, flops=240)
    # 3 cuts in 8 frames: 4 windows, 4 frames compressed to 16 tokens each.
    case = Case("by hand", (8,), tokens=2, width=4)
    packed = 4 * 2 + 4 + 4 * 17
    pack = benchmark("pack_context").cost(case)
    assert pack.written == 4 * 4 * packed
    assert pack.read == 4 * (4 * 2 * 4 + 4 * 16 * 4 + 4) + 4 * packed
    queries = benchmark("anchor_queries").cost(case)
    assert queries.matmul_flops == 2 * 4 * 16 * 4 * 768
    assert queries.read == 4 * (4 * 2 * 4 + 768 * 5)


def test_ceilings() -> None:
    found = measure("cpu", tiny=True)
    rates = [found.read, found.copy, *found.matmul.values()]
    assert all(rate > 1e6 for rate in rates)
    known = Ceilings(read=10.0, copy=5.0, matmul={torch.float32: 2.0})
    # 100 bytes are copied to 100 (40 s), the other 200 read (20 s)
    assert known.seconds(Cost(300, 100, 1, 0), torch.float32) == (60.0, "memory")
    assert known.seconds(Cost(0, 100, 1, 0), torch.float32) == (20.0, "memory")
    assert known.seconds(Cost(300, 100, 400, 400), torch.float32) == (200.0, "matmul")


def test_short_calls_are_repeated() -> None:
    calls: list[int] = []
    short = timers.sampler(lambda: calls.append(1), [()], "cpu")
    assert (short.timer, short.loops > 100) == ("wall", True)
    before = len(calls)
    seconds, _ = timers.take(short)
    assert len(calls) - before == short.loops and 0 < seconds < 1e-3


def test_inputs_rotate_through_twice_the_cache() -> None:
    assert timers.num_copies(10, cache=100) == 21
    assert timers.num_copies(1000, cache=100) == 1
    assert timers.num_copies(0, cache=100) == timers.MOST_COPIES

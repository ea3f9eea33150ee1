# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from bench.report import results
from bench.timing import machine, turns


def test_interleave_takes_turns_and_drops_the_warmup() -> None:
    calls: list[str] = []
    times = turns.interleave(
        {name: lambda name=name: calls.append(name) for name in "abc"}, rounds=6, warmup=1
    )
    rounds = ["".join(calls[i : i + 3]) for i in range(0, len(calls), 3)]
    assert rounds == ["bac", "abc", "cba", "bca", "acb", "cab", "bac"]  # every order once
    assert {name: len(t.seconds) for name, t in times.items()} == {"a": 6, "b": 6, "c": 6}


@pytest.mark.parametrize(("providers", "rounds"), [({}, 1), ({"a": int}, 0)])
def test_interleave_refuses_nothing_to_do(providers: dict, rounds: int) -> None:
    with pytest.raises(ValueError, match="expected at least 1 of each"):
        turns.interleave(providers, rounds)


def test_wall_clock_and_cpu_are_told_apart() -> None:
    (timing,) = turns.interleave({"sleep": lambda: time.sleep(0.05)}, 3, warmup=0).values()
    assert min(timing.seconds) >= 0.05
    assert sum(timing.cpu_seconds) < 0.05
    assert timing.summary()["cpu_median_s"] < timing.summary()["median_s"]


@pytest.mark.parametrize("load", [0.2, 5.0])
def test_a_busy_machine_is_named(
    load: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (load, 0.0, 0.0))
    assert machine.load_of_others() == load
    assert [r.levelname for r in caplog.records] == (["WARNING"] if load > 0.5 else [])


def test_quantiles_interpolate() -> None:
    timing = turns.Timing((5.0, 1.0, 2.0, 4.0, 3.0, 6.0))
    assert timing.summary() == {"median_s": 3.5, "p20_s": 2.0, "p80_s": 5.0, "rounds": 6}
    assert turns.Timing((7.0,)).quantile(0.8) == 7.0


def test_record_keeps_other_benchmarks_and_says_where_it_ran(tmp_path: Path) -> None:
    results.record("first", [{"x": 1}], tmp_path)
    path = results.record("second", [{"x": 2}], tmp_path)
    results.record("second", [{"x": 3}], tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [f"{machine.machine()}.json"]
    found = json.loads(path.read_text())
    assert found["first"]["rows"] == [{"x": 1}]
    assert found["second"]["rows"] == [{"x": 3}]
    versions = found["second"]["environment"]["versions"]
    assert versions["torch"] and "commit" in found["second"]["environment"]

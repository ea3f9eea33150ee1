# SPDX-License-Identifier: Apache-2.0
"""Graphs of bucketed sizes. What CUDA would do is stood in for: a replay runs the function again on
the recorded inputs, and nothing else."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from test_compressor import compressor, ragged
from test_speedups import question, run, unprojected

import tdc.compressor.compressor
import tdc.compressor.cuda_graphs
from tdc.compressor.cuda_graphs import MOST, BucketedGraphs, bucket
from tdc.compressor.speedups import Speedups


class Recorder:
    """Stands in for the capture."""

    def __init__(self):
        self.captured = 0

    def __call__(self, function, inputs):
        self.captured += 1
        out = function(inputs)
        return lambda: out.copy_(function(inputs)), out


def test_buckets():
    assert [bucket(n) for n in (0, 1, 8, 9, 64, 65, 80, 81, 128, 129, 186, 1000)] == [
        *(0, 8, 8, 16, 64, 80, 80, 96, 128, 160, 192, 1024)
    ]
    for n in range(33, 3000):
        assert n <= bucket(n) <= 1.25 * n
        assert bucket(bucket(n)) == bucket(n)


def test_sizes_of_a_bucket_share_a_graph():
    record = Recorder()
    graphs = BucketedGraphs(lambda x: x["a"] * x["b"].sum(), {"a": 1, "b": 1}, "a", record)
    kept = []
    for rows, others in ((3, 7), (8, 2), (5, 8), (3, 7)):
        inputs = {"a": torch.randn(rows, 2), "b": torch.randn(others), "c": None}
        kept.append((graphs(inputs), inputs["a"] * inputs["b"].sum()))
    assert record.captured == 1
    for got, wanted in kept:  # a result is not overwritten by later calls
        torch.testing.assert_close(got, wanted)
    for rows in range(9, 9 + 16 * MOST, 16):
        graphs({"a": torch.randn(rows, 2), "b": torch.ones(1), "c": None})
    assert len(graphs._graphs) == MOST < record.captured


@torch.no_grad()
@pytest.mark.parametrize("make", [ragged, unprojected, lambda: ragged(audio=False)])
@pytest.mark.parametrize("padded", [False, True])
def test_compressor(monkeypatch, make, padded):
    record = Recorder()
    monkeypatch.setattr(tdc.compressor.compressor, "GRAPHS_ON", "cpu")
    monkeypatch.setattr(BucketedGraphs.__init__, "__defaults__", (record,))
    module = compressor().eval()
    speedups = replace(Speedups(), cuda_graphs=True)
    for window in (4, None, 4):
        features, asked = make(), question(padded)
        got = run(module, features, speedups, window, **asked)
        wanted = run(module, features, Speedups.none(), window, **asked)
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-11)
    video = weakref.ref(features.visual.values)
    del features
    gc.collect()
    assert video() is None  # nor do the graphs keep it
    features = make()
    before = record.captured
    assert before < 3 or make is unprojected  # which has another map for every video
    module.output_proj.weight.mul_(2)
    run(module, features, speedups, **asked)
    assert record.captured == before + 1  # captured again: a folded weight has moved


@pytest.mark.gpu
@torch.no_grad()
def test_compressor_on_a_gpu():
    module, features = compressor().eval().cuda(), unprojected().to("cuda")
    asked = {name: x.cuda() for name, x in question(True).items()}
    wanted = run(module, features, Speedups.none(), **asked)
    for _ in range(3):
        got = run(module, features, replace(Speedups(), cuda_graphs=True), **asked)
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-9)

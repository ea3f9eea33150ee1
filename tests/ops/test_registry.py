# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import logging
import os
import subprocess
import sys

import pytest
import torch

import tdc_kernels as tk
from tdc_kernels import registry


def run(code: str, **env: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


@pytest.fixture
def spy(monkeypatch):
    """A second, capable backend of frame_similarity that returns its name's length."""
    calls = []

    def install(backend, requires=None, accepts=None, pays=None):
        def kernel(features, cu_frames=None):
            calls.append(backend)
            return torch.full((features.shape[0] - 1,), float(len(backend))), None

        entries = {**registry._ENTRIES["frame_similarity"]}
        entries[backend] = registry.Entry(kernel, None, False, requires, accepts, pays)
        monkeypatch.setitem(registry._ENTRIES, "frame_similarity", entries)
        monkeypatch.setattr(registry, "_AVAILABLE", {})
        monkeypatch.setattr(registry, "_ANNOUNCED", set())
        return calls

    return install


X = torch.ones(3, 4)


def test_first_capable_backend_runs(spy):
    calls = spy("triton")
    spy("native")
    tk.frame_similarity(X)
    assert calls == ["triton"]


def test_backend_that_refuses_the_device_is_passed_over(spy):
    calls = spy("triton", requires=lambda device: f"no {device}")
    tk.frame_similarity(X)
    assert calls == []
    with pytest.raises(RuntimeError, match="backend 'triton' cannot run frame_similarity: no cpu"):
        tk.frame_similarity(X, backend="triton")


def test_backend_that_refuses_the_arguments_is_passed_over(spy):
    calls = spy("triton", accepts=lambda x, cu: "odd" if x.shape[1] % 2 else None)
    tk.frame_similarity(X)
    tk.frame_similarity(torch.ones(3, 5))
    assert calls == ["triton"]
    with pytest.raises(RuntimeError, match="cannot run frame_similarity: odd"):
        tk.frame_similarity(torch.ones(3, 5), backend="triton")


def test_backend_that_does_not_pay_runs_only_when_asked_for(spy):
    calls = spy("triton", pays=lambda *args: "does not pay at these sizes")
    tk.frame_similarity(X)
    assert calls == []
    tk.frame_similarity(X, backend="triton")
    assert calls == ["triton"]


def test_argument_beats_context_beats_default(spy):
    calls = spy("triton")
    with tk.use_backend("reference"):
        tk.frame_similarity(X)
        tk.frame_similarity(X, backend="triton")
        with tk.use_backend("auto"):
            tk.frame_similarity(X)
        tk.frame_similarity(X)
    tk.frame_similarity(X, backend="reference")
    tk.frame_similarity(X)
    assert calls == ["triton"] * 3


def test_context_is_left_on_errors(spy):
    calls = spy("triton")
    with pytest.raises(ZeroDivisionError), tk.use_backend("reference"):
        _ = 1 / 0
    tk.frame_similarity(X)
    assert calls == ["triton"]


def test_choice_is_logged_once(spy, caplog):
    spy("triton")
    with caplog.at_level(logging.INFO, "tdc_kernels.registry"):
        tk.frame_similarity(X)
        tk.frame_similarity(X)
    assert caplog.messages == ["frame_similarity runs on backend triton"]


def test_missing_backend_says_why():
    """Only cross_attention has an arrangement in plain PyTorch beside the reference."""
    message = "backend 'torch' cannot run frame_similarity: not implemented"
    with pytest.raises(RuntimeError, match=message):
        tk.frame_similarity(X, backend="torch")


def test_unknown_backend():
    with pytest.raises(ValueError, match=r"backend: expected 'auto' or one of cuda, .* got 'cpu'"):
        tk.frame_similarity(X, backend="cpu")
    with (
        pytest.raises(ValueError, match="use_backend: expected 'auto' or one of"),
        tk.use_backend("fast"),
    ):
        pass


def test_table():
    rows = registry.table("cpu")
    assert len(rows) == len(registry.ops()) * len(tk.backends())
    assert {r.op for r in rows} == {
        "frame_similarity",
        "scene_boundaries",
        "segment_scenes",
        "anchor_queries",
        "cross_attention",
        "pack_context",
    }
    assert all(r.available for r in rows if r.backend == "reference")
    assert all(bool(r.reason) != r.available for r in rows)
    (native,) = (
        r for r in registry.table("cuda") if (r.op, r.backend) == ("scene_boundaries", "native")
    )
    assert native.reason == "runs on the CPU only, not on 'cuda'"


def test_compile_follows_the_context(spy):
    """The forced backend is guarded: changing it compiles anew instead of running the old one."""
    torch._dynamo.reset()
    spy("triton")
    compiled = torch.compile(lambda x: tk.frame_similarity(x), fullgraph=True, backend="aot_eager")
    features = torch.randn(3, 4)
    assert compiled(features).tolist() == [6, 6]
    with tk.use_backend("reference"):
        assert compiled(features).abs().max() <= 1
    assert compiled(features).tolist() == [6, 6]


def test_environment_variable():
    code = """
import torch, tdc_kernels as tk
try:
    print(tk.frame_similarity(torch.ones(2, 3)).tolist())
except RuntimeError as error:
    print(error)
with tk.use_backend("auto"):
    print(tk.frame_similarity(torch.ones(2, 3)).shape)
"""
    lines = run(code, TDC_BACKEND="triton", TRITON_INTERPRET="0").splitlines()
    assert lines[0].startswith("backend 'triton' cannot run frame_similarity")
    assert lines[1] == "torch.Size([1])"
    with pytest.raises(ValueError, match="TDC_BACKEND: expected 'auto' or one of"):
        registry._check_name("gpu", "TDC_BACKEND")


def test_import_is_light():
    """Needs torch alone, whatever else is installed, and adds less than half a second to it."""
    code = """
import json, sys, time
for name in ("transformers", "triton", "scipy", "av", "pybind11", "matplotlib", "PIL", "rich"):
    sys.modules[name] = None
import torch
before, start = set(sys.modules), time.perf_counter()
import tdc_kernels
seconds = time.perf_counter() - start
tdc_kernels.segment_scenes(torch.ones(5, 3), 2)
tdc_kernels.accelerate
print(json.dumps([seconds, sorted({m.split(".")[0] for m in set(sys.modules) - before})]))
"""
    seconds, modules = json.loads(run(code))
    assert seconds < 0.5
    assert set(modules) <= {"tdc_kernels", "torch", *sys.stdlib_module_names}

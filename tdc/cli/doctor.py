# SPDX-License-Identifier: Apache-2.0
"""``tdc doctor``: what is installed, what the machine has, and which op runs on which backend."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .options import Subparsers, command
from .terminal import table

if TYPE_CHECKING:
    from tdc_kernels.native import Library  # imports torch, which the command does when it runs

# Distribution names; the last ones are optional and often absent.
_PACKAGES = (
    "tdc-kernels",
    "torch",
    "transformers",
    "triton",
    "av",
    "numpy",
    "safetensors",
    "accelerate",
    "flash-attn",
)
_VARIABLES = (
    "TDC_BACKEND",
    "OMP_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "HF_HUB_OFFLINE",
    "TRITON_INTERPRET",
)


def add(subparsers: Subparsers) -> None:
    parser = command(
        subparsers,
        "doctor",
        run,
        "show versions, devices, and the backends of every op",
        "An optional part that is absent is reported, never an error.",
        loads_model=False,
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def run(arguments: Any) -> None:
    facts = examine()
    if arguments.json:
        print(json.dumps(facts, indent=2))
    else:
        _print(facts)


def examine() -> dict[str, Any]:
    """Everything that the command shows, as JSON's types."""
    from tdc_kernels import native

    devices = _devices()
    return {
        "versions": {"python": platform.python_version()} | {p: _version(p) for p in _PACKAGES},
        "devices": devices,
        "native": _library(native.CPU) | native.build_info(),
        "cuda": _library(native.CUDA),
        "self_attention": {kind: _self_attention(kind) for kind in _kinds(devices)},
        "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "backends": {kind: _backends(kind) for kind in _kinds(devices)},
    }


def _self_attention(kind: str) -> str:
    """The kernels that padded self-attention of the Q-Former runs on."""
    from ..compressor.self_attention import why_not_flash

    reason = why_not_flash(kind)
    if reason is None:
        return "flash-attn in half precision"
    return f"scaled_dot_product_attention ({reason})"


def _library(library: Library) -> dict[str, Any]:
    reason = library.why_not()
    return {"loaded": reason is None, "reason": reason or ""}


def _version(package: str) -> str | None:
    if package == "torch":  # the metadata of a wheel do not always say which build it is (+cu130)
        import torch

        return str(torch.__version__)
    try:
        return version(package)
    except PackageNotFoundError:
        if package == "tdc-kernels":  # run from a checkout that is not installed
            from tdc_kernels import __version__

            return f"{__version__} (not installed)"
        return None


def _devices() -> list[dict[str, str]]:
    import torch

    found = [
        {
            "device": "cpu",
            "name": _cpu_name(),
            "details": f"{os.cpu_count()} cores, PyTorch uses {torch.get_num_threads()} threads "
            f"and {torch.backends.cpu.get_cpu_capability()}",
        }
    ]
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        found.append(
            {
                "device": f"cuda:{index}",
                "name": device.name,
                "details": f"compute capability {device.major}.{device.minor}, "
                f"{device.total_memory / 2**30:.0f} GiB, {device.multi_processor_count} SMs",
            }
        )
    return found


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _kinds(devices: list[dict[str, str]]) -> list[str]:
    return list(dict.fromkeys(d["device"].partition(":")[0] for d in devices))


def _backends(kind: str) -> list[dict[str, Any]]:
    from tdc_kernels import registry

    return [
        {"op": row.op, "backend": row.backend, "available": row.available, "reason": row.reason}
        for row in registry.table(kind)
    ]


def _print(facts: dict[str, Any]) -> None:
    table(
        ["package", "version"],
        [[p, v or "not installed"] for p, v in facts["versions"].items()],
        left=2,
    )
    print()
    table(
        ["device", "name", "details"],
        [[d["device"], d["name"], d["details"]] for d in facts["devices"]],
        left=3,
    )
    if len(facts["devices"]) == 1:
        print("no CUDA device")
    print()
    _print_library("native library", facts["native"])
    _print_library("CUDA library", facts["cuda"])
    for kind, what in facts["self_attention"].items():
        print(f"Q-Former's padded self-attention on {kind}: {what}")
    if facts["environment"]:
        print("\nenvironment")
        for name, value in facts["environment"].items():
            print(f"  {name}={value}")
    for kind, rows in facts["backends"].items():
        print(f"\nops on {kind}: each runs on its first backend that can")
        _print_backends(rows)


def _print_library(name: str, info: dict[str, Any]) -> None:
    state = "loaded" if info["loaded"] else f"no: {info['reason']}"
    print(f"{name}: {state}")
    for name, value in info.items():
        if name not in ("loaded", "reason"):
            print(f"  {name}: {value}")


def _print_backends(rows: list[dict[str, Any]]) -> None:
    backends = list(dict.fromkeys(row["backend"] for row in rows))
    ops = list(dict.fromkeys(row["op"] for row in rows))
    cell = {(row["op"], row["backend"]): row for row in rows}
    reasons = list(dict.fromkeys(row["reason"] for row in rows if not row["available"]))

    def mark(op: str, backend: str) -> str:
        row = cell[op, backend]
        return "yes" if row["available"] else f"no ({reasons.index(row['reason']) + 1})"

    table(["op", *backends], [[op, *(mark(op, b) for b in backends)] for op in ops], left=99)
    for number, reason in enumerate(reasons):
        print(f"  ({number + 1}) {reason}")

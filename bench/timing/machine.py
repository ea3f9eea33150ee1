# SPDX-License-Identifier: Apache-2.0
"""Where and with what a number was measured: machine, load, versions, commit."""

from __future__ import annotations

import logging
import os
import platform
import re
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import tdc_kernels

logger = logging.getLogger(__name__)

_SOURCES = (":/", ":(exclude,top)bench/results", ":(exclude,top)docs/benchmarks*")


def load_of_others() -> float:
    """Processes that wanted a core in the last minute; call it before the first measurement.

    A busy machine does not slow both sides alike: many small calls wait at many more barriers than
    one large one. The load is written into the results, and a warning says when it matters.
    """
    load = round(os.getloadavg()[0], 2)
    if load > 0.5:
        logger.warning("load is %.1f before the first measurement: ratios will be off", load)
    return load


def environment(device: str) -> dict[str, Any]:
    """Machine, versions, commit and threads of this run."""
    others = ("transformers", "triton", "numpy")
    versions = {"torch": torch.__version__, "tdc-kernels": tdc_kernels.__version__}
    return {
        "machine": machine(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "threads": torch.get_num_threads(),
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions | {name: _version(name) for name in others},
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def machine() -> str:
    """CPU model and number of cores as a file name: ``amd-epyc-2-cores``. Never the host's name."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE)
        model = found.group(1) if found else model
    return f"{_slug(model)}-{os.cpu_count()}-cores"


def results_name(device: str) -> str:
    """Name of the results of this machine's CPU, or of its GPU: the two are never mixed."""
    return _slug(torch.cuda.get_device_name()) if device == "cuda" else machine()


def _slug(name: str) -> str:
    name = re.sub(r"\((r|tm|c)\)", " ", name, flags=re.IGNORECASE)
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def commit() -> str:
    """Short hash of the checked-out commit; ``+changes`` if files other than results differ."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        return f"{head}+changes" if _git("status", "--porcelain", "--", *_SOURCES) else head
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*args: str) -> str:
    done = subprocess.run(
        ["git", *args], cwd=Path(__file__).parent, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None

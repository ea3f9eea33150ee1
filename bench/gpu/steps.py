# SPDX-License-Identifier: Apache-2.0
"""The steps of ``bench.gpu`` in their order, and how a step is run within its time."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CUDA_FOLDERS = ("/usr/local/cuda",)  # where toolkits are that are not on PATH
RUN_OUT = "out of time"
SECONDS, MARGIN_S = "{seconds}", 15.0  # in a command: what its step may take, less the margin
POLL_S = 0.05

Command = tuple[str, ...]


@dataclass(frozen=True)
class Step:
    """Commands that run side by side, and what their failing means."""

    name: str
    commands: tuple[Command, ...]
    limit_s: float
    least_s: float = 10.0  # with less time left it is not begun
    why_not: str | None = None
    judges: bool = False  # its failing is the failing of the whole run


@dataclass(frozen=True)
class Outcome:
    """How a step ended: "passed", "failed", "timed out" or "not run"; ``reason`` in one line."""

    name: str
    status: str
    seconds: float = 0.0
    reason: str = ""
    logs: tuple[str, ...] = ()  # relative to the folder of the results
    judges: bool = False


@dataclass(frozen=True)
class Machine:
    """What the steps depend on."""

    device: str  # "cuda" or "cpu"
    arch: str = ""  # TDC_CUDA_ARCHS of this GPU
    tiny: bool = False


def architecture(major: int, minor: int) -> str:
    """What nvcc calls the GPU: from Hopper on with the instructions of this very chip."""
    return f"{major}{minor}{'a' if major >= 9 else ''}"


# ---------------------------------------------------------------- the table


def steps(machine: Machine, out: Path) -> list[Step]:
    """What runs, in order.

    The order is that of what would be missed most. Without the build there is nothing of ours to
    measure; the ceilings take seconds and every share is of them. Then the kernels at the paper's
    size against the peers that need no minutes of tuning, the compressor, and the pipeline, because
    these hold the published targets. Providers are compared with the reference before they are
    timed, so a wrong kernel gives no number there; that is why the tests and the sanitizer, which
    take long and say little more while all is well, can wait until the numbers are safe. They
    share the machine among themselves, as nothing is timed meanwhile. What is left goes to the
    second language model, the autotuned compiler, other sizes and gradients, and the pictures.
    """
    return [
        build(machine),
        ceilings(machine, out),
        ops(machine, out, "ops", "--first", limit_s=100),
        compressor(machine, out),
        pipeline(machine, out, "qwen2-7b"),
        tests(machine),
        sanitizer(machine),
        ops(machine, out, "ops, autotuned", "--first", "--autotune", limit_s=120),
        pipeline(machine, out, "llama-3.2-3b"),
        ops(machine, out, "ops, all cases", limit_s=300),
        plots(out),
    ]


def python(module: str, *args: str) -> Command:
    return (sys.executable, "-m", module, *args)


def build(machine: Machine) -> Step:
    """The CUDA library by its own builder, which needs nvcc and torch alone; beside it the native
    one, which needs pybind11 and setuptools as well and says so where it does without."""
    native = (sys.executable, "setup.py", "build_ext", "--inplace")
    cuda = (sys.executable, "csrc/build_cuda.py", "tdc_kernels/_cuda.so")
    # The tests of the ops compile the CUDA kernels for the CPU before they begin, a minute or so.
    code = "import sys; sys.path.insert(0, 'tests/ops'); import cuda_on_cpu as c; c.libraries()"
    stand_in = (sys.executable, "-c", code)
    if machine.device != "cuda":
        why_not = "no CUDA device"
    elif nvcc_home() is None and shutil.which("nvcc") is None:
        why_not = "no nvcc on PATH, in CUDA_HOME or in " + ", ".join(CUDA_FOLDERS)
    else:
        why_not = None
    return Step("build", (cuda, native, stand_in), 150, why_not=why_not)


def ceilings(machine: Machine, out: Path) -> Step:
    return ops(machine, out, "ceilings", "--ceilings-only", limit_s=60)


def ops(machine: Machine, out: Path, name: str, *options: str, limit_s: float) -> Step:
    """It ends by itself a little before its limit, between two cases."""
    args = ["--out", str(out), "--device", machine.device, f"--seconds={SECONDS}"]
    args += ["--tiny", "--budget", "0"] if machine.tiny else []
    return Step(name, (python("bench", *args, *options),), limit_s, least_s=25)


def compressor(machine: Machine, out: Path) -> Step:
    args = ["compressor", "--part", "whole", "--device", machine.device, "--out", str(out)]
    if machine.tiny:
        args += ["--frames", "28", "--audio-tokens", "0", "--rounds", "1", "--dry-run"]
    else:
        args += ["--dtype", "bfloat16", "--rounds", "5"]
    return Step("compressor", (python("bench", *args),), 100, 30)


def pipeline(machine: Machine, out: Path, llm: str) -> Step:
    scale = "tiny" if machine.tiny else "paper"
    args = ["pipeline", "--scale", scale, "--llm", llm]
    args += ["--device", machine.device, "--out", str(out)]
    return Step(f"pipeline, {llm}", (python("bench", *args),), 170, 40)


def tests(machine: Machine) -> Step:
    """A process per file, as pytest-xdist may be missing."""
    why_not = missing("pytest", "hypothesis")
    if machine.device != "cuda":
        why_not = "no CUDA device"
    options = ("-q", "-m", "gpu", "-p", "no:cacheprovider", "--tb=short")
    commands = tuple(python("pytest", *options, str(path)) for path in gpu_tests())
    return Step("tests", commands, 150, 30, why_not, judges=True)


def gpu_tests() -> list[Path]:
    """Files of tests that have something to do on a GPU, relative to the repository."""
    marks = ("@pytest.mark.gpu", "@targets(")
    found = [
        *(ROOT / "tests" / "ops").glob("test_*.py"),
        *(ROOT / "tests" / "compressor").glob("*.py"),
    ]
    return sorted(f.relative_to(ROOT) for f in found if any(m in f.read_text() for m in marks))


def sanitizer(machine: Machine) -> Step:
    """Memory errors of everything that runs, races of our own kernels: PyTorch's are not ours, and
    each costs a hundred times its time."""
    tool = shutil.which("compute-sanitizer") or str(nvcc_home() or "") + "/bin/compute-sanitizer"
    why_not = None if Path(tool).exists() else "no compute-sanitizer on PATH"
    if machine.device != "cuda":
        why_not = "no CUDA device"
    watched = python("bench.gpu.sanitize")
    # Without PyTorch's cache every tensor is an allocation of its own, whose end is known.
    common = ("env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1", tool, "--error-exitcode", "9")
    commands = (
        (*common, "--tool", "memcheck", *watched),
        (*common, "--tool", "racecheck", "--kernel-name", "kns=tdc", *watched),
    )
    return Step("sanitizer", commands, 120, 30, why_not, judges=True)


def plots(out: Path) -> Step:
    args = ("--results", str(out), "--out", str(out / "plots"))
    why_not = missing("matplotlib", "PIL")
    return Step("plots", (python("bench.report.plots", *args),), 60, 10, why_not)


def missing(*modules: str) -> str | None:
    """One line about the first module that is not installed, or None."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed"
    return None


def nvcc_home() -> Path | None:
    """A toolkit that PATH does not know: CUDA_HOME, or one of the usual folders."""
    folders = [os.environ.get("CUDA_HOME"), *CUDA_FOLDERS]
    return next((Path(f) for f in folders if f and Path(f, "bin", "nvcc").exists()), None)


def environment(machine: Machine, packages: Path | None) -> dict[str, str]:
    """What the commands find in their environment."""
    found = dict(os.environ)
    paths = [str(ROOT), *([str(packages)] if packages else []), found.get("PYTHONPATH", "")]
    found["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    home = nvcc_home()
    if home is not None:
        found |= {"CUDA_HOME": str(home), "PATH": f"{home}/bin{os.pathsep}{found.get('PATH', '')}"}
    if machine.device == "cuda":
        # The CUDA library is built beside, not by setup.py.
        found |= {"TDC_CUDA_ARCHS": machine.arch, "TDC_BUILD_CUDA": "0"}
    else:
        found["TORCHDYNAMO_DISABLE"] = "1"  # compiling takes minutes, and says nothing on a CPU
    return found


# ---------------------------------------------------------------- running


def run(step: Step, out: Path, left_s: float, env: Mapping[str, str]) -> Outcome:
    """Run a step's commands side by side, at most for its limit and for the time that is left.

    Every command writes ``logs/<step>[-<number>].log``; whoever is over the time is killed with all
    its children. Ctrl-C kills them and goes through.
    """
    if step.why_not is not None:
        return Outcome(step.name, "not run", reason=step.why_not, judges=step.judges)
    if left_s < step.least_s:
        return Outcome(step.name, "not run", reason=RUN_OUT, judges=step.judges)
    limit, begin = min(step.limit_s, left_s), time.monotonic()
    names = _log_names(step)
    (out / "logs").mkdir(parents=True, exist_ok=True)
    processes = []
    try:
        for command, name in zip(step.commands, names, strict=True):
            command = tuple(w.replace(SECONDS, f"{max(0, limit - MARGIN_S):.0f}") for w in command)
            with (out / name).open("w") as log:
                log.write(" ".join(command) + "\n")
                log.flush()
                processes.append(_start(command, log, env))
        codes = _wait(processes, begin + limit)
    finally:
        for process in processes:
            _kill(process)
    status, reason = _verdict(codes, step.commands, limit)
    seconds = round(time.monotonic() - begin, 1)
    return Outcome(step.name, status, seconds, reason, names, step.judges)


def _log_names(step: Step) -> tuple[str, ...]:
    stem = "".join(c if c.isalnum() or c in ".-" else "-" for c in step.name)
    if len(step.commands) == 1:
        return (f"logs/{stem}.log",)
    return tuple(f"logs/{stem}-{number}.log" for number in range(1, len(step.commands) + 1))


def _start(command: Command, log: Any, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # a group of its own, to be killed with its children
    )


def _wait(processes: Sequence[subprocess.Popen[bytes]], stop: float) -> list[int | None]:
    """Exit statuses, None for who is still running when the time is over."""
    while time.monotonic() < stop and any(p.poll() is None for p in processes):
        time.sleep(POLL_S)
    return [process.poll() for process in processes]


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _verdict(
    codes: Sequence[int | None], commands: Sequence[Command], limit: float
) -> tuple[str, str]:
    failed = [
        f"{_what(command)} ended with status {code}"
        for code, command in zip(codes, commands, strict=True)
        if code not in (0, None)
    ]
    if failed:
        return "failed", "; ".join(failed)
    late = [_what(c) for code, c in zip(codes, commands, strict=True) if code is None]
    if late:
        return "timed out", f"{', '.join(late)} after {limit:.0f} s"
    return "passed", ""


def _what(command: Command) -> str:
    """A command in a word or two: its file or module."""
    words = [w for w in command[1:] if w.endswith((".py", ".so")) or w.startswith("bench")]
    words += [w for w in command if w in ("memcheck", "racecheck")]
    return words[-1] if words else Path(command[0]).name

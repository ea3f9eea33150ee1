# SPDX-License-Identifier: Apache-2.0
"""Measure ops and whole parts of the model: ``python -m bench [NAME ...] [options]``.

Without names: all ops. Everybody who is compared takes turns in one process, after their outputs
were compared; medians with the 20th and 80th percentile go into ``bench/results``.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import itertools
import logging
import sys
from pathlib import Path

import torch

from . import kernels
from .benchmark import Benchmark, Refused, op_names
from .report import results
from .run import Run

PROG = "python -m bench"
REFUSED = 3  # exit status
OTHERS = """
other commands:
  python -m bench.compare BASE    the ops of another revision and of this one, in turns
  python -m bench.gpu --out DIR   everything that a GPU has to say, within minutes
  python -m bench.scenes.evaluate CLIPS   how well cuts are found in footage whose cuts are known
  python -m bench.report.plots    pictures of the results
  python -m bench.report.table    tables of docs/benchmarks.md from the results
  pytest bench/pytest_ops.py      the ops under pytest-benchmark, for its statistics and files
"""


def catalogue() -> dict[str, str]:
    """Everything that can be measured, and the first line of its module; nothing is imported."""
    found = {}
    for folder in ("ops", "model"):
        for path in sorted((Path(__file__).parent / folder).glob("*.py")):
            text = path.read_text(encoding="utf-8")
            if "\nBENCHMARK = " in text:
                about = ast.get_docstring(ast.parse(text)) or ""
                found[path.stem] = about.split("\n\n")[0].replace("\n", " ").replace("``", "")
    return found


def parser_of(
    benchmark: Benchmark, names: list[str], about: str | None, epilog: str = ""
) -> argparse.ArgumentParser:
    prog = " ".join([PROG, *names])
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=f"{prog if names else f'{PROG} [NAME ...]'} [options]",
        description=about,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=benchmark.devices, default="cpu")
    parser.add_argument("--out", type=Path, default=results.RESULTS, help="folder of the results")
    parser.add_argument("--dry-run", action="store_true", help="write no results")
    if benchmark.timed:
        usual = f"default: {benchmark.rounds or 'as the scale says'}"
        parser.add_argument("--rounds", type=int, default=benchmark.rounds, help=usual)
        parser.add_argument("--threads", type=int, default=2, help="of torch (default: 2)")
    benchmark.options(parser)
    return parser


def wrong(benchmark: Benchmark, args: argparse.Namespace) -> str | None:
    """One line about arguments that cannot be served, or None."""
    if args.device == "cuda" and not torch.cuda.is_available():
        return "--device cuda: there is no CUDA device"
    for name in ("rounds", "threads"):
        value = getattr(args, name, None)
        if value is not None and value < 1:
            return f"--{name}: expected at least 1, got {value}"
    return benchmark.wrong(args)


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    names = list(itertools.takewhile(lambda word: not word.startswith("-"), argv))
    known = catalogue()
    unknown = [name for name in names if name not in known]
    if unknown:
        sys.stderr.write(f"{PROG}: NAME: expected some of {', '.join(known)}, got {unknown[0]}\n")
        return 2
    named_ops = [name for name in names if name in op_names()]
    parsers = []
    if named_ops or not names:
        about = f"{__doc__}\n" + "".join(f"  {name:17} {text}\n" for name, text in known.items())
        parsers.append((kernels.BENCHMARK, parser_of(kernels.BENCHMARK, named_ops, about, OTHERS)))
    for name in names:
        if name not in named_ops:
            module = importlib.import_module(f"{__package__}.model.{name}")
            parsers.append((module.BENCHMARK, parser_of(module.BENCHMARK, [name], module.__doc__)))
    runs = []
    for benchmark, parser in parsers:  # all of them, before the first is run
        args = parser.parse_args(argv[len(names) :])
        args.ops = named_ops or op_names()
        error = wrong(benchmark, args)
        if error is not None:
            parser.exit(2, f"{parser.prog}: {error}\n")
        runs.append((benchmark, parser.prog, args))
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    return max(run(*one) for one in runs)


def run(benchmark: Benchmark, prog: str, args: argparse.Namespace) -> int:
    if benchmark.timed:
        torch.set_num_threads(args.threads)
    try:
        return (benchmark.run or Run)(benchmark, args).go()
    except Refused as error:
        sys.stderr.write(f"{prog}: refused: {error}\n")
        return REFUSED


if __name__ == "__main__":
    sys.exit(main())

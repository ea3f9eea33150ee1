# SPDX-License-Identifier: Apache-2.0
"""``python -m tiny.ablations``: the paper's ablations at small scale, on clips of the world."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tdc.cli.main import run as run_command
from tdc.cli.options import positive_int
from tdc.cli.terminal import note, table

if TYPE_CHECKING:
    from .sweep import Sweep

_DEFAULT = "(default: %(default)s)"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tiny.ablations",
        description="Train tiny models that differ in one thing, and compare them. "
        "Every setting of every ablation, one seed of everything first. What has a result is left "
        "alone, and what was stopped goes on from its last checkpoint. Several may run on one "
        "folder: each takes what nobody else is at. docs/ablations.md lists the ablations.",
    )
    parser.set_defaults(run=run, loads_model=True, check=lambda _: None)
    parser.add_argument("out", metavar="OUT_DIR", help="a folder per variant")
    parser.add_argument("--only", metavar="NAME", nargs="+", help="these ablations; default: all")
    parser.add_argument("--seeds", metavar="N", type=positive_int, default=3, help=_DEFAULT)
    parser.add_argument(
        "--budget",
        metavar="N",
        type=positive_int,
        default=4_800,
        help="examples of videos with sound, after ten times as many pairs of frames for the "
        f"compressor alone {_DEFAULT}",
    )
    parser.add_argument("--list", action="store_true", help="print what there is and what is done")
    parser.add_argument(
        "--report", action="store_true", help="write tables and pictures of what is done; run none"
    )
    parser.add_argument(
        "--page", metavar="FILE", help="with --report: fill in the tables of this page instead"
    )
    parser.add_argument(
        "--model",
        metavar="DIR",
        help="a tiny TDC that all variants begin with, but for the compressor, and that LVCoT asks "
        "(default: the one in the package)",
    )
    parser.add_argument(
        "--clips", metavar="N", type=positive_int, default=60, help=f"asked of each kind {_DEFAULT}"
    )
    parser.add_argument(
        "--questions", metavar="N", type=positive_int, default=6, help=f"per clip {_DEFAULT}"
    )
    parser.add_argument(
        "--threads", metavar="N", type=positive_int, help="torch threads; default: torch's own"
    )
    return parser


def run(arguments: Any) -> None:
    import torch

    from tdc.errors import InputError
    from tdc.train import check_installed

    from .report import fill_page, report
    from .sweep import run as run_sweep
    from .table import chosen

    if arguments.page is not None and not arguments.report:
        raise InputError("--page goes with --report")
    sweep = _sweep(arguments)
    names = chosen(sweep.only)
    if arguments.list:
        _list(sweep)
        return
    if arguments.report:
        if not sweep.out.is_dir():
            raise InputError(
                f"no such folder: {sweep.out}; expected one that python -m tiny.ablations wrote"
            )
        page = arguments.page
        paths = report(sweep.out, names) if page is None else fill_page(sweep.out, page, names)
        print("\n".join(str(path) for path in paths))
        return
    check_installed()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)

    def say(line: str) -> None:
        print(line, flush=True)

    run_sweep(sweep, say, note)


def _sweep(arguments: Any) -> Sweep:
    from pathlib import Path

    from tdc.checkpoints.load import read_config
    from tdc.errors import InputError

    from .sweep import Sweep

    out = Path(arguments.out)
    if out.is_file():
        raise InputError(f"{out} is a file; expected a folder")
    model = None if arguments.model is None else Path(arguments.model)
    if model is not None:
        read_config(model)
    if arguments.page is not None:
        arguments.page = Path(arguments.page)
    return Sweep(
        out,
        examples=arguments.budget,
        seeds=arguments.seeds,
        only=None if arguments.only is None else tuple(arguments.only),
        clips=arguments.clips,
        questions=arguments.questions,
        model=model,
    )


def _list(sweep: Sweep) -> None:
    from .sweep import RESULT, Variant
    from .table import chosen

    rows = []
    for ablation in chosen(sweep.only):
        for setting in ablation.settings:
            listed = [Variant(ablation, setting, seed) for seed in range(sweep.seeds)]
            done = sum((v.folder(sweep.out) / RESULT).exists() for v in listed)
            changes = ", ".join(f"{name}={value}" for name, value in setting.changes.items())
            if setting.segments is not None:
                changes = f"num_segments={setting.segments}"
            state = setting.lacking() or f"{done} of {sweep.seeds} done"
            how = changes if setting.sound else "without sound"
            where = f"{state} (the baseline)" if setting.is_baseline() else state
            rows.append([ablation.name, setting.name, how, where])
    table(["ablation", "setting", "changes", "seeds"], rows, left=4)


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(build_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())

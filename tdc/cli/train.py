# SPDX-License-Identifier: Apache-2.0
"""``tdc train``: one stage of training."""

from __future__ import annotations

from typing import Any

from ..errors import InputError
from ..train import check_installed
from .options import Subparsers, command
from .terminal import note, table


def add(subparsers: Subparsers) -> None:
    parser = command(
        subparsers,
        "train",
        run,
        "train one stage of a model",
        "Stage 1 aligns pictures and text, 2 tunes on videos, 3 on videos with sound. A run that "
        "was stopped goes on from its last checkpoint.",
        check=check,
    )
    parser.add_argument("stage", metavar="STAGE", type=int, choices=(1, 2, 3), help="1, 2 or 3")
    parser.add_argument(
        "--config", metavar="FILE", required=True, help="settings in YAML; see docs/training.md"
    )
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        dest="overrides",
        help="a setting instead of the file's; may be given many times",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would train and check the data; stop"
    )


def check(arguments: Any) -> None:
    from ..train.config import load_config

    check_installed()
    arguments.settings = settings = load_config(arguments.config, arguments.overrides)
    if settings.stage not in (None, arguments.stage):
        raise InputError(
            f"{arguments.config} is meant for stage {settings.stage}, not {arguments.stage}; "
            "give the file of this stage"
        )


def run(arguments: Any) -> None:
    from ..train.run import train
    from ..train.trainer import leave_process_group

    def report(title: str, rows: list[list[str]]) -> None:
        print(title)
        table(["part", "parameters", "state", "learning rate"], rows)

    train(arguments.settings, arguments.stage, report=report, say=note, dry_run=arguments.dry_run)
    leave_process_group()

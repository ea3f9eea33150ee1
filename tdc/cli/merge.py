# SPDX-License-Identifier: Apache-2.0
"""``tdc merge``: LoRA weights into the model they were trained on."""

from __future__ import annotations

from typing import Any

from ..train import check_installed
from .options import Subparsers, check_folder, command
from .terminal import activity


def add(subparsers: Subparsers) -> None:
    parser = command(
        subparsers,
        "merge",
        run,
        "turn a LoRA adapter and its model into one model folder",
        "What tdc train 3 writes is an adapter; merged, every other command takes it.",
        check=check,
    )
    parser.add_argument("adapter", metavar="ADAPTER_DIR", help="written by tdc train 3")
    parser.add_argument("output", metavar="OUT_DIR", help="folder to create")
    parser.add_argument(
        "--model", metavar="DIR", help="the model below, if it lies elsewhere by now"
    )


def check(arguments: Any) -> None:
    check_installed()
    check_folder(arguments.adapter, "what tdc train 3 wrote")
    check_folder(arguments.model)


def run(arguments: Any) -> None:
    from ..train.merge import merge_adapter

    changes = {} if arguments.model is None else {"model": arguments.model}
    with activity("merging"):
        merge_adapter(arguments.adapter, arguments.output, changes)
    print(f"{arguments.output}: merged from {arguments.adapter}")

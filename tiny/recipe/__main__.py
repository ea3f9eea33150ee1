# SPDX-License-Identifier: Apache-2.0
"""``python -m tiny.recipe --out DIR``: train the tiny TDC. Two processes of one thread each are
faster than one process of two: ``torchrun --nproc-per-node 2 -m tiny.recipe --out DIR``."""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from tdc.train.trainer import leave_process_group

from .settings import Recipe
from .steps import run


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tiny.recipe", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("tiny-run"), help="default: %(default)s")
    parser.add_argument("--threads", type=int, help="torch threads; default: torch's own")
    for field in dataclasses.fields(Recipe):
        if field.name != "out":
            kind = float if field.type == "float" else int
            parser.add_argument(
                f"--{field.name.replace('_', '-')}", type=kind, default=field.default
            )
    given = vars(parser.parse_args())
    if (threads := given.pop("threads")) is not None:
        torch.set_num_threads(threads)
    transformers_logging.set_verbosity_error()
    began = time.time()

    def say(line: str) -> None:
        if os.environ.get("RANK", "0") == "0":
            print(f"{time.time() - began:7.0f} s  {line}", flush=True)

    folder = run(Recipe(**given), say)
    say(f"{folder}: trained")
    leave_process_group()


if __name__ == "__main__":
    main()

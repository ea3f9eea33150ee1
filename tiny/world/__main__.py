# SPDX-License-Identifier: Apache-2.0
"""``python -m tiny.world``: write a data set of small clips with sound and their ground truth."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from tdc.cli.main import run as run_command
from tdc.cli.options import positive_int
from tdc.cli.terminal import count, progress


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tiny.world",
        description="Make a data set of small clips with questions and answers. "
        "Scenes, objects, motion and sound are drawn from a seed, encoded as MP4 and listed with "
        "questions and true cuts. An interrupted set goes on where it stopped.",
    )
    parser.set_defaults(run=run, loads_model=False, check=lambda _: None)
    parser.add_argument("out", metavar="OUT_DIR")
    parser.add_argument("--clips", metavar="N", type=positive_int, default=100, help=_DEFAULT)
    parser.add_argument(
        "--split",
        metavar="S",
        default="train",
        help="train, validation or test: they share no clip and no combination of shape, color and "
        f"background {_DEFAULT}",
    )
    parser.add_argument("--seed", metavar="N", type=int, default=0, help=_DEFAULT)
    parser.add_argument(
        "--kind",
        metavar="K",
        default="standard",
        help=f"standard, slow, fast-cut, motion, long or image {_DEFAULT}",
    )
    parser.add_argument(
        "--size", metavar="N", type=positive_int, default=64, help=f"pixels a side {_DEFAULT}"
    )
    parser.add_argument(
        "--fps", metavar="N", type=positive_int, default=8, help=f"of the files {_DEFAULT}"
    )
    parser.add_argument(
        "--questions", metavar="N", type=positive_int, default=4, help=f"per clip {_DEFAULT}"
    )
    return parser


_DEFAULT = "(default: %(default)s)"


def run(arguments: Any) -> None:
    import json
    from collections import Counter

    from .dataset import write_dataset

    with progress("making clips") as update:
        path = write_dataset(
            arguments.out,
            clips=arguments.clips,
            split=arguments.split,
            seed=arguments.seed,
            kind=arguments.kind,
            size=arguments.size,
            fps=arguments.fps,
            questions=arguments.questions,
            progress=update,
        )
    entries = json.loads(path.read_text(encoding="utf-8"))
    needs = Counter(need for entry in entries for need in entry["needs"])
    what = "image" if arguments.kind == "image" else "clip"
    print(f"{path}: {count(arguments.clips, what)}, {count(len(entries), 'conversation')}")
    if needs:
        print("needing " + ", ".join(f"{name}: {n:,}" for name, n in sorted(needs.items())))


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(build_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())

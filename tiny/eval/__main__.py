# SPDX-License-Identifier: Apache-2.0
"""``python -m tiny.eval``: a model's accuracy on unseen clips of the small world."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tdc.cli.main import run as run_command
from tdc.cli.options import add_model, positive_int
from tdc.cli.terminal import count, note, progress, table

if TYPE_CHECKING:
    from .evaluate import Control, Evaluation

_DEFAULT = "(default: %(default)s)"
NEEDS = ("audio", "order", "change", "dynamic")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tiny.eval",
        description="Ask a model about held-out clips of the small world. "
        "Clips are drawn, encoded as MP4 and read again. Beside the share of right answers stands "
        "what the best constant answer per kind of question would get, and what is left when the "
        "model is deprived of sound, of cuts, or of everything but static frames.",
    )
    parser.set_defaults(run=run, loads_model=True, check=lambda _: None)
    parser.add_argument("--clips", metavar="N", type=positive_int, default=100, help=_DEFAULT)
    parser.add_argument(
        "--questions", metavar="N", type=positive_int, default=6, help=f"per clip {_DEFAULT}"
    )
    parser.add_argument(
        "--seeds", metavar="N", type=positive_int, default=3, help=f"sets of clips {_DEFAULT}"
    )
    parser.add_argument("--split", metavar="S", default="test", help=_DEFAULT)
    parser.add_argument("--kind", metavar="K", default="standard", help=_DEFAULT)
    parser.add_argument(
        "--choice", action="store_true", help="ask with options, and expect the letter"
    )
    parser.add_argument("--no-controls", action="store_true", help="ask once, deprived of nothing")
    add_model(parser)
    return parser


def run(arguments: Any) -> None:
    from tdc.cli.options import load

    from ..world import ask, make_clip
    from .evaluate import CONTROLS, evaluate

    loaded = load(arguments)
    sets = []
    for seed in range(1, arguments.seeds + 1):
        clips = [
            make_clip(seed, i, split=arguments.split, kind=arguments.kind)
            for i in range(arguments.clips)
        ]
        sets.append([(clip, ask(clip, arguments.questions)) for clip in clips])

    def ask_all(what: str, control: Control | None) -> list[Evaluation]:
        found = []
        for number, asked in enumerate(sets, 1):
            what_now = f"{what}, set {number} of {len(sets)}"
            if not sys.stderr.isatty():  # where no bar is drawn
                note(what_now)
            with progress(what_now) as update:
                found.append(
                    evaluate(
                        loaded.model,
                        loaded.processor,
                        asked,
                        control=control,
                        choice=arguments.choice,
                        progress=update,
                    )
                )
        return found

    # What is known is printed at once: the controls take three times as long as the answers.
    questions = sum(len(asked) for clips in sets for _, asked in clips)
    print(
        f"{loaded.note}: {count(arguments.seeds, 'set')} of {count(arguments.clips, 'clip')} "
        f"({arguments.kind}, {arguments.split}), {questions:,} questions\n",
        flush=True,
    )
    plain = ask_all("asking", None)
    _print_kinds(plain)
    scores = [e.cuts for e in plain]
    print(
        f"\ncuts: F1 {_mean([s.f1 for s in scores])}, precision "
        f"{_mean([s.precision for s in scores])}, recall {_mean([s.recall for s in scores])}\n",
        flush=True,
    )
    controls = {} if arguments.no_controls else CONTROLS
    runs = {name: ask_all(name, control) for name, control in controls.items()}
    _print_controls({"everything there": plain, **runs})


def _print_kinds(found: list[Evaluation]) -> None:
    kinds = sorted({kind for e in found for kind in e.kinds})
    rows = [
        [
            kind,
            f"{sum(e.count(kind) for e in found):,}",
            _mean([e.accuracy(kind) for e in found]),
            _mean([e.constant(kind) for e in found]),
        ]
        for kind in kinds
    ]
    table(["question", "number", "right", "best constant"], rows)


def _print_controls(runs: dict[str, list[Evaluation]]) -> None:
    groups: tuple[str | None, ...] = (None, *NEEDS)
    first = next(iter(runs.values()))
    rows = [
        [name, *(_mean([e.accuracy(needs=needs) for e in found]) for needs in groups)]
        for name, found in runs.items()
    ]
    rows.append(
        ["best constant", *(_mean([e.constant(needs=needs) for e in first]) for needs in groups)]
    )
    table(["right answers", "all", *(f"need {needs}" for needs in NEEDS)], rows)


def _mean(values: list[float]) -> str:
    """Mean ± half the range over the sets that have such questions."""
    known = [v for v in values if v == v]
    if not known:
        return "-"
    spread = (max(known) - min(known)) / 2
    return f"{sum(known) / len(known):.2f}" + (f" ± {spread:.2f}" if len(known) > 1 else "")


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(build_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""``tdc convert``: a checkpoint in the authors' layout becomes one of ours."""

from __future__ import annotations

from collections import Counter
from typing import Any

from .options import Subparsers, check_folder, command
from .terminal import count, note, progress, table


def add(subparsers: Subparsers) -> None:
    parser = command(
        subparsers,
        "convert",
        run,
        "turn a released checkpoint into a model folder",
        "Every tensor is accounted for: an unknown, missing or wrongly shaped one is an error.",
        check=check,
    )
    parser.add_argument("release", metavar="RELEASE_DIR", help="the authors' checkpoint")
    parser.add_argument("output", metavar="OUT_DIR", help="folder to create")
    parser.add_argument(
        "--bert",
        metavar="DIR",
        help="bert-base-uncased, for the Q-Former's vocabulary (default: inside the release)",
    )
    parser.add_argument(
        "--siglip", metavar="DIR", help="SigLIP tower, which the release does not hold"
    )
    parser.add_argument(
        "--dinov2", metavar="DIR", help="DINOv2 tower, which the release does not hold"
    )
    parser.add_argument("--beats", metavar="FILE", help="Microsoft's BEATs .pt file")
    parser.add_argument(
        "--no-audio", action="store_true", help="make a model without sound of one with sound"
    )
    parser.add_argument("--list", action="store_true", help="print what became of every tensor")


def check(arguments: Any) -> None:
    check_folder(arguments.release, "a released checkpoint")
    for tower in (arguments.siglip, arguments.dinov2):
        check_folder(tower, "a tower saved by transformers")


def run(arguments: Any) -> None:
    from ..checkpoints.convert import convert_release

    with progress("converting") as update:
        report = convert_release(
            arguments.release,
            arguments.output,
            bert=arguments.bert,
            siglip=arguments.siglip,
            dinov2=arguments.dinov2,
            beats=arguments.beats,
            audio=not arguments.no_audio,
            progress=update,
        )
    if arguments.list:
        _print_all(report)
    print(
        f"{arguments.output}: {count(len(report.taken), 'tensor')} taken from {arguments.release}"
    )
    for origin, number in Counter(report.added.values()).items():
        print(f"  {number:,} added from {origin}")
    for reason, number in Counter(report.ignored.values()).items():
        print(f"  {number:,} ignored: {reason}")
    missing = [
        option
        for option, value in (("--siglip", arguments.siglip), ("--dinov2", arguments.dinov2))
        if value is None
    ]
    if missing:
        note(
            f"note: converted without {' and '.join(missing)}: the model starts from tower "
            "features and cannot look at pixels"
        )


def _print_all(report: Any) -> None:
    rows = [[theirs, ours] for theirs, ours in report.taken.items()]
    rows += [[f"({origin})", ours] for ours, origin in report.added.items()]
    rows += [[theirs, f"ignored: {reason}"] for theirs, reason in report.ignored.items()]
    table(["released", "here"], rows, left=2)
    print()

# SPDX-License-Identifier: Apache-2.0
"""The command ``tdc``.

Bad input is one line on stderr and exit code 2; any other exception is a bug and keeps its
traceback.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext

from ..errors import InputError
from . import chat, convert, demo, doctor, encode, merge, segment, train
from .terminal import note, quiet_libraries, quiet_transformers

_COMMANDS = (demo, segment, encode, chat, convert, train, merge, doctor)
_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
# Import names of the extra "model"; the command line needs it, the ops do not.
_MODEL_EXTRA = {
    "av",
    "matplotlib",
    "numpy",
    "PIL",
    "rich",
    "safetensors",
    "tokenizers",
    "transformers",
}


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``tdc`` and its subcommands."""
    parser = argparse.ArgumentParser(
        prog="tdc",
        description="Temporal Dynamic Context: scenes, compressed context and answers from long "
        "videos with sound.",
        epilog="tdc COMMAND --help shows the arguments of a command.",
    )
    parser.add_argument("--version", action=_Version, help="print the version and exit")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for module in _COMMANDS:
        module.add(subparsers)
    return parser


class _Version(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"tdc {version('tdc-kernels')}")
        except PackageNotFoundError:  # run from a checkout that is not installed
            from tdc_kernels import __version__

            print(f"tdc {__version__}")
        parser.exit()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's) and return the exit code."""
    return run(build_parser(), argv)


def run(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> int:
    """Parse ``argv`` and do what the chosen command's ``run`` says; returns the exit code."""
    arguments = parser.parse_args(argv)
    name = parser.prog
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr does with odd names
    try:
        with quiet_libraries():
            arguments.check(arguments)
            _check_environment()
            with quiet_transformers() if arguments.loads_model else nullcontext():
                code = arguments.run(arguments)
            sys.stdout.flush()
    except InputError as error:
        note(f"{name}: {' '.join(str(error).split())}")
        return 2
    except KeyboardInterrupt:
        note(f"{name}: interrupted")
        return _INTERRUPTED
    except BrokenPipeError:  # the reader of our output left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # 128 + SIGPIPE
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _MODEL_EXTRA:
            raise
        note(
            f"{name}: {package} is not installed; it comes with the extra 'model' (README, Install)"
        )
        return 2
    return code or 0


def _check_environment() -> None:
    """The op library refuses a misspelt ``TDC_BACKEND`` on import: that is bad input as well."""
    try:
        import tdc_kernels  # noqa: F401
    except ValueError as error:
        raise InputError(str(error)) from None

# SPDX-License-Identifier: Apache-2.0
"""Output of the commands: results on stdout, everything else on stderr."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

Update = Callable[[int, int], None]

# Wide enough for every table when stdout is a file: rich would otherwise cut at 80 columns.
_FILE_WIDTH = 240
_LIBRARIES = ("tdc", "tdc_kernels")
_live: Any = None  # the rich console of the progress bar that is drawn right now


def note(text: str) -> None:
    """A line on stderr that does not tear a progress bar."""
    if _live is not None:
        _live.print(text, markup=False, highlight=False, soft_wrap=True)
    else:
        print(text, file=sys.stderr, flush=True)


def clean(text: str) -> str:
    """Text of a model, without the control characters that could rule the terminal."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text
    )


def count(number: int, noun: str) -> str:
    """``3 frames``, ``1 frame``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> None:
    """Print a table on stdout; the first ``left`` columns stand left, the others right.

    Without rich (it belongs to the extra ``model``) the table comes out in plain columns.
    """
    try:
        from rich import box
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        _plain_table(columns, rows, left)
        return
    terminal = sys.stdout.isatty()
    console = Console(file=sys.stdout, width=None if terminal else _FILE_WIDTH, highlight=False)
    grid = Table(box=box.SIMPLE, pad_edge=False, show_edge=False)
    for i, column in enumerate(columns):
        grid.add_column(column, justify="left" if i < left else "right", overflow="fold")
    for row in rows:
        grid.add_row(*(_escape(cell) for cell in row))
    with console.capture() as captured:
        console.print(grid)
    for line in captured.get().splitlines():
        print(line if terminal else line.rstrip())


def _escape(cell: str) -> Any:
    from rich.text import Text

    return Text(cell)  # brackets in a file name are no markup


def _plain_table(columns: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> None:
    widths = [max(len(row[i]) for row in (columns, *rows)) for i in range(len(columns))]
    for row in (columns, ["-" * width for width in widths], *rows):
        cells = [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


@contextmanager
def progress(text: str) -> Iterator[Update]:
    """A bar on stderr while stderr is a terminal; nothing otherwise. Call it with (done, total)."""
    with _drawn(text) as bar:
        task = None if bar is None else bar.add_task(text, total=None)

        def update(done: int, total: int) -> None:
            if bar is not None:
                bar.update(task, completed=done, total=total)

        yield update


@contextmanager
def bars() -> Iterator[Callable[[str, int, int], None]]:
    """One bar after the other: call it with (what, done, total)."""
    with ExitStack() as shown:
        drawn: dict[str, Update] = {}

        def update(what: str, done: int, total: int) -> None:
            if what not in drawn:
                shown.close()
                drawn[what] = shown.enter_context(progress(what))
            drawn[what](done, total)

        yield update


@contextmanager
def activity(text: str) -> Iterator[Callable[[], None]]:
    """The same for work of unknown length. Call what it gives to take the line away early."""
    with _drawn(text) as bar:
        if bar is not None:
            bar.add_task(text, total=None)
        yield (lambda: None) if bar is None else bar.stop


@contextmanager
def _drawn(text: str) -> Iterator[Any]:
    global _live
    if not sys.stderr.isatty() or _live is not None:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    _live = Console(file=sys.stderr)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, console=_live, transient=True) as bar:
            yield bar
    finally:
        _live = None


class _OneLine(logging.Handler):
    """``warning: ...`` on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        note(f"{record.levelname.lower()}: {' '.join(record.getMessage().split())}")


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Our warnings as one line each, none of Python's; as it was before at the end."""
    handler = _OneLine(logging.WARNING)
    ours = [logging.getLogger(name) for name in _LIBRARIES]
    before = [logger.propagate for logger in ours]
    for logger in ours:
        logger.addHandler(handler)
        logger.propagate = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, propagate in zip(ours, before, strict=True):
            logger.removeHandler(handler)
            logger.propagate = propagate


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No reports, hints and bars of transformers, no retries of the hub; as before at the end."""
    from transformers.utils import logging as hf

    level, bars = hf.get_verbosity(), hf.is_progress_bar_enabled()
    hub = logging.getLogger("huggingface_hub")
    before = hub.level
    hf.set_verbosity_error()
    hub.setLevel(logging.ERROR)
    hf.disable_progress_bar()
    try:
        yield
    finally:
        hf.set_verbosity(level)
        hub.setLevel(before)
        if bars:
            hf.enable_progress_bar()


def one_line(text: str) -> str:
    """Text of a model for a table or a list: no control characters, no line breaks."""
    return " ".join(clean(text).split())

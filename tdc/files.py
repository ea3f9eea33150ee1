# SPDX-License-Identifier: Apache-2.0
"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise `InputError` if a file cannot be written there; cheap, so ask before the work."""
    target = Path(path)
    if target.is_dir():
        raise InputError(f"cannot write {target}: it is a directory")
    if not target.parent.is_dir():
        raise InputError(f"cannot write {target}: no such directory: {target.parent}")
    if not os.access(target.parent, os.W_OK):
        raise InputError(f"cannot write {target}: permission denied")


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside `path` that becomes `path` on success and vanishes on failure.

    The name keeps the suffix, by which writers choose their format. The folder must exist.
    """
    target = Path(path)
    check_writable(target)
    temporary = target.with_name(f".{target.stem}-{secrets.token_hex(4)}{target.suffix}")
    try:
        temporary.touch(exist_ok=False)
        rights = temporary.stat().st_mode  # what any new file gets here
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror}") from None
    try:
        yield temporary
        temporary.chmod(rights)  # safetensors puts a private file (0600) in its place
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def check_new_folder(path: str | os.PathLike[str]) -> None:
    """Raise `InputError` for anything but an empty folder or none."""
    out = Path(path)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists and is not empty; give a new folder")


@contextmanager
def whole_folder(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary folder beside `target` that becomes it on success, vanishes on failure."""
    target = Path(target)
    check_new_folder(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield work
        if target.exists():
            target.rmdir()  # empty, checked above
        for path in (work, *work.rglob("*")):  # mkdtemp's and safetensors' are private
            path.chmod(0o755 if path.is_dir() else 0o644)
        os.replace(work, target)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise

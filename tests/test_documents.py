# SPDX-License-Identifier: Apache-2.0
"""Documents name what is there: links, paths, modules, commands and their options."""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("bench", "csrc", "docs", "examples", "tdc", "tdc_kernels", "tests", "tiny")
# CHANGELOG.md is left out: it names what was there once.
DOCUMENTS = sorted(
    {ROOT / "README.md", ROOT / "CONTRIBUTING.md"}.union(
        *((ROOT / folder).rglob("*.md") for folder in FOLDERS)
    )
)
PACKAGES = r"(?:tdc_kernels|tdc|tiny|bench)"
LINK = re.compile(r"\]\(([^)\s#]+)[^)\s]*\)")
CODE = re.compile(r"^```(?P<language>\w*)\n(?P<block>.*?)^```|`(?P<span>[^`]+)`", re.M | re.S)
PATH = re.compile(rf"(?<![\w./*:-])(?:{'|'.join(FOLDERS)})/[\w./*<>-]*")
FILE = re.compile(r"(?<![\w./*>-])\w+\.(?:py|cpp|cu|cuh|h)\b(?!::)")  # file.py::test is an example
NAME = re.compile(rf"(?<![\w./-]){PACKAGES}(?:\.[A-Za-z_]\w*)+(?![\w/])")
COMMAND = re.compile(r"^(?:\S+=\S+ )*(?:\.venv/bin/|.* -m )?tdc ([a-z]\w*)(.*)", re.M)
MODULE = re.compile(rf"-m ({PACKAGES}(?:\.\w+)*)(.*)")
TARGET = re.compile(r"^(?:\S+=\S+ )*make ([a-z][\w-]*)", re.M)
OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*")


def codes(path: Path) -> Iterator[tuple[str, str]]:
    """(language, text) of every code block and every code span, continued lines joined."""
    for match in CODE.finditer(path.read_text(encoding="utf-8")):
        text = match["block"] if match["span"] is None else match["span"].replace("\n", " ")
        yield match["language"] or "", re.sub(r"\\\n\s*", "", text)


def found(pattern: re.Pattern[str], path: Path) -> Iterator[re.Match[str]]:
    for _, text in codes(path):
        yield from pattern.finditer(text)


def resolve(name: str) -> object:
    """A module, or what one holds; raises ImportError or AttributeError where it is not there."""
    module, *rest = name.split(".")
    value: object = import_module(module)
    for part in rest:
        inner = f"{module}.{part}"
        if value is not None and hasattr(value, "__path__") and find_spec(inner):
            value, module = import_module(inner), inner
        else:
            value = getattr(value, part)
    return value


def is_there(name: str) -> bool:
    try:
        resolve(name)
    except (ImportError, AttributeError):
        return False
    return True


def imports(language: str, text: str) -> Iterator[str]:
    if language != "python":
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and re.match(rf"{PACKAGES}\b", node.module or ""):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def options(parser: argparse.ArgumentParser) -> set[str]:
    return {option for action in parser._actions for option in action.option_strings}


def commands() -> dict[str, set[str]]:
    from tdc.cli.main import build_parser

    choices = next(a.choices for a in build_parser()._actions if a.choices)
    return {name: options(parser) for name, parser in dict(choices).items()}


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_documents_are_found():
    assert {"README.md", "docs/tiny.md", "docs/ops/README.md", "tiny/LOG.md"} <= set(
        map(ids, DOCUMENTS)
    )


@pytest.mark.parametrize("path", DOCUMENTS, ids=ids)
def test_links_and_paths_are_there(path):
    links = [m[1] for m in LINK.finditer(path.read_text(encoding="utf-8"))]
    wrong = [x for x in links if ":" not in x and not (path.parent / x).exists()]
    paths = {re.sub(r"<\w+>", "*", m[0].rstrip(".")) for m in found(PATH, path)}
    wrong += [x for x in paths if not any(ROOT.glob(x.rstrip("/")))]
    files = {m[0] for m in found(FILE, path)}
    wrong += [x for x in files if not any(any((ROOT / f).rglob(x)) for f in FOLDERS)]
    assert not wrong


@pytest.mark.parametrize("path", DOCUMENTS, ids=ids)
def test_names_can_be_imported(path):
    names = {m[0] for m in found(NAME, path)}
    names |= {name for code in codes(path) for name in imports(*code)}
    assert not [name for name in sorted(names) if not is_there(name)]


@pytest.mark.parametrize("path", DOCUMENTS, ids=ids)
def test_commands_have_their_options(path):
    known = commands()
    wrong = []
    for match in found(COMMAND, path):
        given = set(OPTION.findall(match[2].partition("#")[0])) - known.get(match[1], set())
        if match[1] not in known or given:
            wrong.append(match[0])
    for match in found(MODULE, path):
        module = match[1] if match[1] != "tdc" else "tdc.__main__"
        spec = find_spec(module)
        if spec and spec.submodule_search_locations:
            spec = find_spec(f"{module}.__main__")
        build = getattr(resolve(spec.name), "build_parser", None) if spec else None
        given = set(OPTION.findall(match[2].partition("#")[0])) if build else set()
        if spec is None or (build and given - options(build())):
            wrong.append(match[0])
    targets = re.findall(r"^([\w -]+):(?!=)", (ROOT / "Makefile").read_text(), re.M)
    makes = {word for line in targets for word in line.split()}
    wrong += [m[0] for m in found(TARGET, path) if m[1] not in makes]
    assert not wrong


def test_make_runs_modules_that_are_there():
    listed = re.findall(r"^\.PHONY: (.*)", (ROOT / "Makefile").read_text(), re.M)
    command = ["make", "-n", *" ".join(listed).split(), "OUT=dir", "BASE=main"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    modules = re.findall(rf"-m ({PACKAGES}[\w.]*)", said)
    assert "tiny.recipe" in modules and all(map(find_spec, modules))

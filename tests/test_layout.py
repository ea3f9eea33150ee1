# SPDX-License-Identifier: Apache-2.0
"""The rooms stand in the order in which data walks through them: imports point down the stairs."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the bottom up: a room imports rooms before it, never behind it. One line, one step; rooms of
# one step do not import each other.
STAIRS = (
    ("tdc_kernels",),
    ("tdc._auto_classes", "tdc.errors", "tdc.profiling", "tdc.tensor_cache"),
    ("tdc.files",),
    ("tdc.config",),
    ("tdc.media",),
    ("tdc.encoder",),
    ("tdc.compressor",),
    ("tdc.processor",),
    ("tdc.prompt",),
    ("tdc.model",),
    ("tdc.answer",),
    ("tdc.lvcot",),
    ("tdc.checkpoints",),
    ("tdc.session",),
    ("tdc", "tdc.testing", "tdc.train"),
    ("tdc.cli",),
    ("tdc.__main__", "tdc.serve"),
    ("tiny",),
    ("bench",),
)
STEP = {room: number for number, step in enumerate(STAIRS) for room in step}
FOLDERS = ("tdc_kernels", "tdc", "tiny", "bench")


def module_name(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


MODULES = {module_name(p): p for folder in FOLDERS for p in sorted((ROOT / folder).rglob("*.py"))}


def room(module: str) -> str:
    parts = module.split(".")
    return ".".join(parts[: 2 if parts[0] == "tdc" else 1])


def imported(module: str) -> Iterator[str]:
    """Modules of ours that a module imports anywhere, inside functions and for types as well."""
    path = MODULES[module]
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                name = f"{source}.{alias.name}"
                if name in MODULES or source in MODULES:
                    yield name if name in MODULES else source


EDGES = {module: set(imported(module)) - {module} for module in MODULES}


def test_every_module_has_a_room():
    assert {room(module) for module in MODULES} <= set(STEP)


def test_imports_point_down_the_stairs():
    wrong = [
        f"{module} imports {other}"
        for module, others in EDGES.items()
        for other in others
        if room(module) != room(other) and STEP[room(other)] >= STEP[room(module)]
    ]
    assert not wrong


def test_no_circle_of_imports():
    state: dict[str, int] = {}  # 1: being walked, 2: done

    def walk(module: str, way: tuple[str, ...]) -> None:
        state[module] = 1
        for other in sorted(EDGES[module]):
            assert state.get(other) != 1, " -> ".join([*way, module, other])
            if other not in state:
                walk(other, (*way, module))
        state[module] = 2

    for module in MODULES:
        if module not in state:
            walk(module, ())


def test_imports_inside_a_package_are_relative():
    wrong = []
    for module, path in MODULES.items():
        top = module.split(".")[0]
        if top not in ("tdc", "tiny", "bench"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            # As a whole, for its path or its version, a package may be named.
            wrong += [f"{module}: {n}" for n in names if n.startswith(f"{top}.")]
    assert not wrong


def test_files_are_under_400_lines():
    folders = [ROOT / name for name in (*FOLDERS, "tests", "csrc")]
    files = [p for folder in folders for p in folder.rglob("*") if p.is_file()]
    code = [p for p in files if p.suffix in (".py", ".cpp", ".cu", ".cuh", ".h")]
    lengths = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in code}
    assert not {path: lines for path, lines in lengths.items() if lines > 400}


def python(code: str) -> str:
    command = [sys.executable, "-W", "ignore", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout


def test_importing_tdc_waits_for_nothing():
    code = "import sys, tdc; print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    assert python(code) == "[]\n"


@pytest.mark.parametrize(
    "first",
    [
        "import tdc; from transformers import PreTrainedModel",
        pytest.param("from tdc.config import TDCConfig", marks=pytest.mark.slow),
        pytest.param("import transformers, tdc", marks=pytest.mark.slow),
        pytest.param(
            "from tdc.cli.terminal import note; import transformers", marks=pytest.mark.slow
        ),
    ],
)
def test_the_auto_classes_know_the_model(first):
    code = (
        f"{first}; import transformers as t; c = t.AutoConfig.for_model('tdc');"
        "m = t.AutoModelForImageTextToText._model_mapping[type(c)];"
        "from transformers.models.auto.processing_auto import PROCESSOR_MAPPING;"
        "print(m.__name__, PROCESSOR_MAPPING[type(c)].__name__)"
    )
    assert python(code) == "TDCForConditionalGeneration TDCProcessor\n"


def test_public_names():
    import tdc

    assert all(getattr(tdc, name).__name__ for name in tdc.__all__)
    assert set(tdc.__all__) <= set(dir(tdc))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = tdc.nothing

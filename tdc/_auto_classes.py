# SPDX-License-Identifier: Apache-2.0
"""``import tdc`` makes transformers' Auto classes know the model, without importing transformers.

That import takes seconds (torch included), which ``tdc --help`` and whoever wants the media reader
alone would wait for. So registration follows the import of transformers, whenever that comes.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_PACKAGE = __package__ or "tdc"


def register_with_transformers() -> None:
    """Register now if transformers is there, else as soon as it has been imported."""
    if "transformers" in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _AfterTransformers())


def _register() -> None:
    # Each of these modules registers its class with the Auto class that makes it.
    for name in ("model", "processor.processor"):
        import_module(f"{_PACKAGE}.{name}")


class _AfterTransformers(MetaPathFinder):
    """Waits for transformers; then for the end of what is being imported of this package, whose
    modules could not be imported a second time from within."""

    def __init__(self) -> None:
        self.imports = threading.local()  # of this package and transformers, one inside the other

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "transformers" and not name.startswith(f"{_PACKAGE}."):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return None
        loader: Any = spec.loader
        run = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            depth = getattr(self.imports, "depth", 0)
            self.imports.depth = depth + 1
            try:
                run(module)
            finally:
                self.imports.depth = depth
            if depth == 0 and "transformers" in sys.modules and self in sys.meta_path:
                sys.meta_path.remove(self)
                _register()

        loader.exec_module = exec_module
        return spec

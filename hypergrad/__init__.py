"""Tune the hyperparameters of JAX training loops. Names load when they are first used."""

import ast
import importlib
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

# the public names stand once, in the stub that editors and type checkers read
_STUB = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
_HOMES = {
    alias.name: str(node.module)
    for node in _STUB.body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
}
__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'hypergrad' has no attribute {name!r}")
    if home == "hypergrad":
        return importlib.import_module(f"hypergrad.{name}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__

"""Which names of the standard library Linux has and macOS has not, as typeshed's stubs say it.

mypy brings those stubs along.  A name counts for a platform when the stub defines it under conditions on
`sys.platform` and `sys.version_info` that hold there.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def stub_directory() -> Path:
    spec = importlib.util.find_spec("mypy")
    assert spec is not None, "mypy is a development dependency"
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0], "typeshed", "stdlib")


def only_on_linux() -> dict[str, frozenset[str]]:
    """Module: its names that macOS has not.  Only modules of which something is missing."""
    directory = stub_directory()
    missing = {}
    for path in sorted([*directory.glob("*.pyi"), *directory.glob("*/__init__.pyi")]):
        text = path.read_text(encoding="utf-8")
        if "sys.platform" not in text:
            continue
        tree = ast.parse(text)
        names = frozenset(_names(tree.body, "linux")) - frozenset(_names(tree.body, "darwin"))
        if names:
            missing[path.parent.name if path.stem == "__init__" else path.stem] = names
    return missing


def _names(body: list[ast.stmt], platform: str) -> Iterator[str]:
    for statement in body:
        if isinstance(statement, ast.If):
            yield from _names(statement.body if _holds(statement.test, platform) else statement.orelse, platform)
        elif isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield statement.name
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            yield statement.target.id
        elif isinstance(statement, ast.Assign):
            yield from (target.id for target in statement.targets if isinstance(target, ast.Name))
        elif isinstance(statement, (ast.Import, ast.ImportFrom)):
            yield from (alias.asname or alias.name for alias in statement.names)


def _holds(test: ast.expr, platform: str) -> bool:
    """Whether a condition of a stub holds on `platform` with this Python."""
    if isinstance(test, ast.BoolOp):
        parts = [_holds(part, platform) for part in test.values]
        return all(parts) if isinstance(test.op, ast.And) else any(parts)
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return not _holds(test.operand, platform)
    if isinstance(test, ast.Name) and test.id == "TYPE_CHECKING":
        return True
    code = ast.unparse(test)
    if not code.startswith(("sys.platform", "sys.version_info")):
        raise ValueError(f"typeshed has a condition that is not understood: {code}")
    system = type("sys", (), {"platform": platform, "version_info": sys.version_info})
    return bool(eval(code, {"sys": system}))

"""The table of private names, ``docs/private-interfaces.md``, holds what the code uses."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from fitplan.faults import KNOWN

ROOT = Path(__file__).parent.parent
ROWS = [
    tuple(cell.strip() for cell in line.strip().strip("|").split("|"))
    for line in (ROOT / "docs" / "private-interfaces.md").read_text().splitlines()
    if line.startswith("| ") and "`" in line
]
LISTED = {(file, name.strip("`")) for _, name, file, *_ in ROWS}
FILES = [
    path
    for folder in ("models", "step", "trace", "validation")
    for path in sorted((ROOT / "fitplan" / folder).rglob("*.py"))
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[1]} in {row[2]}")
def test_what_is_listed_is_used_there(row: tuple[str, ...]) -> None:
    library, name, file, what, _ = row
    assert library in KNOWN
    assert what
    assert re.search(rf"\b{re.escape(name.strip('`'))}\b", (ROOT / file).read_text())


def _is_private(name: str) -> bool:
    return bool(re.fullmatch(r"_[A-Za-z]\w*", name))


def _own() -> set[str]:
    """Private names that fitplan defines itself, whatever for."""
    found = {"_fitplan_value", "_exit", "_bytes", "_ALLOC_FAILED"}  # Python's, and ends of words
    for path in (ROOT / "fitplan").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_self(node.value):
                found.add(node.attr)
    return found


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


def _asked_for(path: Path) -> Iterator[str]:
    """Private names that a file asks of something: attributes, imports, and names in strings."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.ImportFrom | ast.Import):
            where = (node.module or "").split(".") if isinstance(node, ast.ImportFrom) else []
            yield from where
            yield from (part for alias in node.names for part in alias.name.split("."))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_used_is_listed(path: Path) -> None:
    asked = {name for name in _asked_for(path) if _is_private(name)} - _own()
    listed = {name for file, name in LISTED if file == str(path.relative_to(ROOT))}
    assert asked - listed == set()

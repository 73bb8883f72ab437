"""The direction of the arrows: which package may import which, and where Lightning is known."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import lightning_hnd

ROOT = Path(lightning_hnd.__file__).parent
FLOORS = [  # each stands on those above it in this list, or on its like
    {"instead"},
    {"concepts", "rules", "unit", "whole_files", "in_threads"},
    {"functional"},
    {"layer_dissection", "rendering"},
    {"dissection", "dictionary"},
    {"showing", "building"},
    {"measuring"},
    {"evidence"},
    {"pipeline"},
    {"history", "analyses"},
    {"report"},
    {"training"},
    {"__init__"},
    {"cli"},
    {"__main__"},
]

SMALL = {
    "__future__",
    "collections.abc",
    "dataclasses",
    "typing",
    "math",
    "functools",
    "itertools",
    "concurrent.futures",
}


def files() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def part_of(path: Path) -> str:
    """A package, or a file beside them."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """What a file imports when it runs, wherever in it; not what only types need."""
    for node in _running(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield node.module or ""


def _running(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        yield from _running(node)


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_imports_upwards(path: Path) -> None:
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    mine = part_of(path)
    for module in imported(path):
        package, _, rest = module.partition(".")
        if package == "lightning_hnd":
            theirs = rest.partition(".")[0] or "__init__"
            assert theirs == mine or floor[theirs] < floor[mine], f"{mine} imports {module}"
        elif package in ("lightning", "pytorch_lightning"):
            assert mine == "training", f"Lightning is known in training/ alone, and {path} imports {module}"
        if mine == "functional":
            assert package in ("lightning_hnd", "torch", "numpy", "threadpoolctl") or module in SMALL, module

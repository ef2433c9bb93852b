"""What the rules look at: the project's own files, parsed, never imported."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("shards", "preprocess", "bmpt")


@dataclass(frozen=True)
class Import:
    """One import statement's target.

    module: absolute dotted name, `package.name` for `from package import name`
    line: of the statement
    is_at_top: whether importing the file runs it"""

    module: str
    line: int
    is_at_top: bool


def source_files(*packages: str) -> list[Path]:
    """All Python files of the packages, sorted."""
    return sorted(path for package in packages for path in (ROOT / package).rglob("*.py"))


def relative(path: Path) -> str:
    """The path as the repository names it."""
    return path.relative_to(ROOT).as_posix()


def module_name(path: Path) -> str:
    """`bmpt/engine/train.py` -> `bmpt.engine.train`; a package's `__init__` has the package's
    name."""
    return relative(path).removesuffix(".py").replace("/", ".").removesuffix(".__init__")


def tree_of(path: Path) -> ast.Module:
    """The file, parsed."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports_of(path: Path) -> list[Import]:
    """Every import of a file but those under `if TYPE_CHECKING:`, which never run."""
    return list(_imports(tree_of(path), path, is_at_top=True))


def own_part(module: str) -> str:
    """The first part of a dotted name."""
    return module.split(".")[0]


def tracked_files() -> list[Path]:
    """What git tracks and what it would add: everything that is part of the repository."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        check=True,
    ).stdout.decode()
    paths = (ROOT / name for name in listed.split("\0") if name)
    return sorted(path for path in paths if path.is_file())


def _imports(node: ast.AST, path: Path, *, is_at_top: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, child.lineno, is_at_top) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = _absolute(child, path)
            yield from (
                Import(f"{base}.{alias.name}", child.lineno, is_at_top) for alias in child.names
            )
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for statement in child.orelse:
                yield from _imports(ast.Module([statement], []), path, is_at_top=is_at_top)
        else:
            inside = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from _imports(child, path, is_at_top=is_at_top and not inside)


def _absolute(node: ast.ImportFrom, path: Path) -> str:
    if node.level == 0:
        return node.module or ""
    parts = [*path.relative_to(ROOT).parts[:-1]]
    parts = parts[: len(parts) - node.level + 1]
    return ".".join([*parts, node.module] if node.module else parts)

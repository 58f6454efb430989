"""Files, functions and parameter lists stay small; the exceptions are listed and only shrink."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

LIMITS = {"file_lines": 500, "function_lines": 60, "parameters": 6}
EXCEPTIONS = Path(__file__).parent / "size_exceptions.toml"
# Lower this when an exception goes; never raise it.
MAX_EXCEPTIONS = 0


def test_nothing_outgrows_its_limit(root: Path) -> None:
    assert complaints(measured(root), listed()) == []


def test_exceptions_only_shrink() -> None:
    assert sum(len(group) for group in listed().values()) <= MAX_EXCEPTIONS


def test_an_oversized_function_is_found() -> None:
    body = "\n".join("    x = 1" for _ in range(60))
    source = f"class A:\n  def f(self, a, b, c, *, d, e, f, g):\n{body.replace('    ', '      ')}\n"
    sizes = dict(function_sizes(ast.parse(source)))
    assert sizes == {"A.f": (61, 7)}


def test_an_exception_that_is_too_generous_is_found() -> None:
    sizes = {"file_lines": {"a.py": 510, "b.py": 501, "c.py": 400}}
    known = {"file_lines": {"a.py": 520, "b.py": 501, "c.py": 600, "gone.py": 600}}
    found = complaints(sizes, known)
    assert [line.split(":")[0] for line in found] == ["a.py", "c.py", "gone.py"]


def test_growth_beyond_an_exception_is_found() -> None:
    found = complaints({"parameters": {"a.py::f": 8}}, {"parameters": {"a.py::f": 7}})
    assert len(found) == 1


def complaints(sizes: dict[str, dict[str, int]], known: dict[str, dict[str, int]]) -> list[str]:
    """Compares what was measured with limits and exceptions; an exception fits exactly or fails."""
    found = []
    for kind, limit in LIMITS.items():
        exceptions = known.get(kind, {})
        for name, size in sizes.get(kind, {}).items():
            allowed = exceptions.get(name, limit)
            if size > allowed:
                found.append(f"{name}: {kind} {size}, allowed {allowed}; split it")
        for name, allowed in exceptions.items():
            size = sizes.get(kind, {}).get(name, 0)
            if size <= limit:
                found.append(f"{name}: {kind} is {size} now; remove its exception")
            elif size < allowed:
                found.append(f"{name}: {kind} is {size} now; lower its exception from {allowed}")
    return sorted(found)


def listed() -> dict[str, dict[str, int]]:
    exceptions = tomllib.loads(EXCEPTIONS.read_text(encoding="utf-8"))
    assert set(exceptions) <= set(LIMITS)
    return exceptions


def measured(root: Path) -> dict[str, dict[str, int]]:
    sizes: dict[str, dict[str, int]] = {kind: {} for kind in LIMITS}
    files = [*sorted((root / "src").rglob("*.py")), *sorted((root / "tests").rglob("*.py"))]
    assert len(files) > 20
    for path in files:
        name = path.relative_to(root).as_posix()
        source = path.read_text(encoding="utf-8")
        sizes["file_lines"][name] = source.count("\n")
        for function, (lines, parameters) in function_sizes(ast.parse(source)):
            sizes["function_lines"][f"{name}::{function}"] = lines
            sizes["parameters"][f"{name}::{function}"] = parameters
    return sizes


def function_sizes(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, tuple[int, int]]]:
    """Yields name, lines (from `def`, docstring included) and parameters of every function."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            yield prefix + node.name, (lines, num_parameters(node))
        named = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        inner = f"{prefix}{node.name}." if named else prefix  # type: ignore[union-attr]
        yield from function_sizes(node, inner)


def num_parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    positional = [*node.args.posonlyargs, *node.args.args]
    if positional and positional[0].arg in {"self", "cls"}:
        positional = positional[1:]
    variadic = (node.args.vararg is not None) + (node.args.kwarg is not None)
    return len(positional) + len(node.args.kwonlyargs) + variadic

"""Real text that every Python carries: reference prose, docstrings and the library's sources."""

from __future__ import annotations

import ast
import hashlib
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_SKIPPED_FOLDERS = {"test", "tests", "idlelib", "site-packages", "lib2to3", "pydoc_data",
                    "__pycache__", "turtledemo", "ensurepip"}  # fmt: skip
_CHUNK_CHARS = 2000
_MIN_DOCSTRING_CHARS = 80


@dataclass(frozen=True, kw_only=True)
class Document:
    """One text and where it comes from."""

    text: str
    source: str


def is_held_out(text: str) -> bool:
    """Returns whether `text` belongs to the fifth that no recipe ever trains on."""
    return hashlib.sha256(text.encode()).digest()[0] % 5 == 0


def reference_prose() -> list[Document]:
    """Returns the language reference of `pydoc_data.topics`, cut at paragraphs."""
    from pydoc_data.topics import topics  # 465 kB: loaded only when asked for

    return [
        Document(text=chunk, source=f"pydoc:{name}")
        for name, text in sorted(topics.items())
        for chunk in _paragraph_chunks(text)
    ]


def docstrings() -> list[Document]:
    """Returns the standard library's docstrings of at least 80 characters, without repeats."""
    seen: set[str] = set()
    found = []
    for path, tree in _modules():
        for name, text in _docstrings_of(tree, path.stem):
            if len(text) >= _MIN_DOCSTRING_CHARS and text not in seen:
                seen.add(text)
                found.append(Document(text=text, source=name))
    return found


def library_sources() -> Iterator[Document]:
    """Yields the standard library's sources without their docstrings, which bases may know."""
    for path, tree in _modules():
        code = _without_docstrings(path.read_text(encoding="utf-8"), tree)
        if len(code) >= 1000:
            yield Document(text=code, source=path.name)


def _library_folder() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def _modules() -> Iterator[tuple[Path, ast.Module]]:
    folder = _library_folder()
    for path in sorted(folder.rglob("*.py")):
        if _SKIPPED_FOLDERS.intersection(path.relative_to(folder).parts[:-1]):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield path, ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue


def _docstrings_of(tree: ast.Module, module: str) -> Iterator[tuple[str, str]]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, kinds) and (text := ast.get_docstring(node)):
            name = module if isinstance(node, ast.Module) else f"{module}.{node.name}"
            yield name, text


def _without_docstrings(text: str, tree: ast.Module) -> str:
    lines = text.splitlines(keepends=True)
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, kinds) and ast.get_docstring(node) is not None:
            expr = node.body[0]
            for i in range(expr.lineno - 1, expr.end_lineno or expr.lineno):
                lines[i] = ""
    return "".join(lines)


def _paragraph_chunks(text: str) -> Iterator[str]:
    chunk = ""
    for paragraph in text.split("\n\n"):
        if chunk and len(chunk) + len(paragraph) > _CHUNK_CHARS:
            yield chunk
            chunk = ""
        chunk = f"{chunk}\n\n{paragraph}" if chunk else paragraph
    if chunk.strip():
        yield chunk

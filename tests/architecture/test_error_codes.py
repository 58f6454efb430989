"""Every error has one documented code that never changes, under one root, in a few files."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

from cambium.core import errors
from cambium.core.errors import CambiumError, TrustError
from cambium.evals import errors as eval_errors
from cambium.serve import errors as serve_errors

HOMES = {("core", "errors.py"), ("evals", "errors.py"), ("serve", "errors.py")}
CLASSES = {
    name: value
    for module in (errors, eval_errors, serve_errors)
    for name, value in vars(module).items()
    if inspect.isclass(value) and issubclass(value, CambiumError)
}


def test_each_code_is_declared_once() -> None:
    codes: dict[str, str] = {}
    for name, error in CLASSES.items():
        if "code" in vars(error):  # otherwise inherited: the caller need not tell them apart
            assert error.code not in codes, f"{name} repeats the code of {codes[error.code]}"
            codes[error.code] = name
    assert len(codes) > 20


def test_codes_are_snake_case_and_documented() -> None:
    for name, error in CLASSES.items():
        assert re.fullmatch(r"[a-z]+(_[a-z0-9]+)*", error.code), name
        assert vars(error).get("__doc__"), f"{name} says nothing"


def test_what_fails_a_check_of_trust_is_no_value_error() -> None:
    """`except ValueError` around parsing must never swallow a bad signature."""
    for error in CLASSES.values():
        if issubclass(error, TrustError):
            assert not issubclass(error, ValueError)


def test_errors_live_in_files_of_their_own(source_files: list[Path]) -> None:
    """Nothing elsewhere derives from them, so that this file and the status table see them all."""
    stray = []
    for path in source_files:
        if path.parts[-2:] not in HOMES:
            stray += [f"{path.name}: {name}" for name in derived(path.read_text(encoding="utf-8"))]
    assert stray == []


def test_a_stray_error_is_found() -> None:
    source = "class Odd(errors.DataError): ...\nclass Other(Exception): ...\n"
    assert list(derived(source)) == ["Odd"]


def test_an_error_reads_as_one_line() -> None:
    error = errors.DataError("two\nlines", mend="send one")
    assert error.one_line() == "two lines: send one"


def derived(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            bases = {ast.unparse(base).rsplit(".", 1)[-1] for base in node.bases}
            if bases & CLASSES.keys():
                yield node.name

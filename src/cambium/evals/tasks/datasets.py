"""A task's rows: from files beside it or in `CAMBIUM_DATA`, or from a hub if one is reachable."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import zlib
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cambium.core.errors import DataError
from cambium.evals.errors import TaskInvalid
from cambium.evals.tasks.task import Source

MAX_BYTES = 2**29
FILE_KINDS = ("json", "csv", "parquet", "text")


def data_folder() -> Path:
    """Returns `CAMBIUM_DATA`, which defaults to `../shared/data`."""
    return Path(os.environ.get("CAMBIUM_DATA") or "../shared/data")


def read_rows(source: Source, split: str) -> list[dict[str, Any]]:
    """Returns a split's rows, each with the same fields; what a row lacks is None.

    Raises:
        TaskInvalid: the split or a file is missing, lies elsewhere, or cannot be read.
    """
    if source.kind not in FILE_KINDS:
        return _hub_rows(source, split)
    if split not in source.files:
        raise TaskInvalid(
            f"there are no data files for split {split!r}",
            mend=f"name them under dataset_kwargs.data_files; there are {sorted(source.files)}",
        )
    rows: list[dict[str, Any]] = []
    for name in source.files[split]:
        rows += _file_rows(source, find_file(source.folder, name))
    fields = list(dict.fromkeys(key for row in rows for key in row))
    return [{key: row.get(key) for key in fields} for row in rows]


def find_file(folder: Path, name: str) -> Path:
    """Returns the file called `name` beside the task, or else in `CAMBIUM_DATA`.

    Raises:
        TaskInvalid: it is in neither, or the name leads out of both.
    """
    roots = [folder.resolve(), data_folder().resolve()]
    for root in roots:
        path = (root / name).resolve()
        if any(path.is_relative_to(one) for one in roots) and path.is_file():
            return path
    if not any((root / name).resolve().is_relative_to(one) for root in roots for one in roots):
        raise TaskInvalid(
            f"the file {name!r} lies outside of the task's folder and of CAMBIUM_DATA",
            mend="move it beside the task file",
        )
    raise TaskInvalid(
        f"the file {name!r} is neither in {folder} nor in {data_folder()}",
        mend="set CAMBIUM_DATA to the folder with evaluation data",
    )


def _file_rows(source: Source, path: Path) -> list[dict[str, Any]]:
    if source.kind == "parquet":
        return _parquet_rows(path)
    try:
        text = _text(path)
        if source.kind == "json":
            rows = _json_rows(text)
        elif source.kind == "csv":
            rows = _typed(list(csv.DictReader(io.StringIO(text))))
        elif source.name == "document":
            rows = [{"text": text}]
        else:
            rows = [{"text": line} for line in text.splitlines()]
    except (OSError, EOFError, ValueError, RecursionError, csv.Error, zlib.error) as error:
        raise TaskInvalid(f"{path.name} cannot be read as {source.kind}: {str(error)[:200]}",
                          mend="mend the file, or dataset_path") from error  # fmt: skip
    if not all(isinstance(row, dict) for row in rows):
        raise TaskInvalid(f"a row of {path.name} is not an object", mend="write one object a line")
    return rows


def _text(path: Path) -> str:
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES} bytes")
    return data.decode("utf-8")


def _json_rows(text: str) -> list[dict[str, Any]]:
    if text.lstrip()[:1] == "[":
        return json.loads(text)
    # Not `splitlines`: JSON may hold other line separators inside its strings.
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def _typed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns CSV rows with columns of numbers as numbers and empty cells as None."""
    for name in rows[0] if rows else ():
        cells = [row[name] for row in rows]
        for kind in (int, float, str):
            try:
                values = [None if cell in ("", None) else kind(cell) for cell in cells]
            except (TypeError, ValueError):
                continue
            for row, value in zip(rows, values, strict=True):
                row[name] = value
            break
    return rows


def _parquet_rows(path: Path) -> list[dict[str, Any]]:
    if find_spec("pyarrow") is None:
        raise TaskInvalid("parquet files need the package pyarrow", mend="pip install pyarrow")
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise TaskInvalid(f"{path.name} cannot be read as parquet: {str(error)[:200]}",
                          mend="mend the file, or dataset_path") from error  # fmt: skip


def _hub_rows(source: Source, split: str) -> list[dict[str, Any]]:
    """Asks the package `datasets`, which may be answered by its cache or by a hub."""
    if find_spec("datasets") is None:
        raise TaskInvalid(
            f"the data set {source.kind!r} needs the package datasets",
            mend="pip install datasets, or give its files with dataset_path: json",
        )
    import datasets

    try:
        rows: Iterable[Any] = datasets.load_dataset(source.kind, source.name, split=split)
        return [dict(row) for row in rows]
    except (OSError, ValueError, RuntimeError) as error:
        raise TaskInvalid(
            f"the data set {source.kind!r} cannot be loaded: {str(error)[:200]}",
            mend="check the network, or give its files with dataset_path: json",
        ) from error


def check_rows(rows: Sequence[Any], what: str) -> None:
    """Refuses an empty list.

    Raises:
        DataError: there is nothing in it; an evaluation of nothing must not pass for one.
    """
    if not rows:
        raise DataError(f"{what} has no rows", mend="check the split, `where` and the files")

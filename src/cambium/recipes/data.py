"""Where recipes and benchmarks find real data."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

from cambium.core.errors import DataError


def data_folder() -> Path:
    """Returns `CAMBIUM_DATA`, which defaults to `../shared/data`."""
    return Path(os.environ.get("CAMBIUM_DATA") or "../shared/data")


def read_lines(path: str) -> list[dict[str, Any]]:
    """Returns the objects of a gzipped JSON lines file inside the data folder.

    Raises:
        DataError: it is not there.
    """
    full = data_folder() / path
    if not full.is_file():
        raise DataError(f"{full} is missing", mend="set CAMBIUM_DATA to the folder with real data")
    with gzip.open(full, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]

"""Finished runs of a long recipe, a line each, so that none is made twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Journal:
    """Rows in a file of JSON lines; a last line that was cut off does not count."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.rows: list[dict[str, Any]] = []
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    self.rows.append(json.loads(line))
                except ValueError:
                    continue
        # Without the half line, behind which the next one would be lost too.
        path.write_text("".join(json.dumps(row) + "\n" for row in self.rows), encoding="utf-8")

    def add(self, row: dict[str, Any]) -> None:
        """Adds a row and puts it into the file."""
        self.rows.append(row)
        with self._path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(row) + "\n")

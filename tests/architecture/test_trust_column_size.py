"""What decides about trust can be read in an afternoon."""

from __future__ import annotations

from pathlib import Path

MAX_LINES = 3000
OUTSIDE = {("trust", "providers"), ("trust", "sandbox")}


def test_the_trust_column_stays_small(root: Path) -> None:
    package = root / "src" / "cambium"
    lines = {}
    for path in package.rglob("*.py"):
        parts = path.relative_to(package).parts
        if parts[0] in {"core", "trust", "lifecycle"} and parts[:2] not in OUTSIDE:
            lines[path] = path.read_text(encoding="utf-8").count("\n")
    columns = {path.relative_to(package).parts[0] for path in lines}
    assert columns == {"core", "trust", "lifecycle"}
    assert sum(lines.values()) < MAX_LINES

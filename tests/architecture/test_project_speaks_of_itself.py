"""No file speaks of the machine it was written on, nor of where its packages came from."""

from __future__ import annotations

import re
from pathlib import Path

# In pieces, so that this file does not contain what it looks for.
FORBIDDEN = [
    "/" + "work" + "/",
    "/" + "root" + "/",
    "/" + "home" + "/" + r"\w",
    "/" + "Users" + "/" + r"\w",
    "/" + "opt" + "/" + "(pypi|wheels)",
    "pypi" + r"\.org",
    "pythonhosted" + r"\.org",
    "download" + r"\.pytorch\.org",
    "anaconda" + r"\.(org|com)",
    "--(extra-)?index" + "-url",
]
PATTERN = re.compile("|".join(FORBIDDEN))


def findings(text: str) -> list[str]:
    return [line.strip()[:120] for line in text.splitlines() if PATTERN.search(line)]


def test_no_file_names_a_machine_or_a_package_host(repository_files: list[Path]) -> None:
    found = {}
    for path in repository_files:
        data = path.read_bytes()
        if b"\0" in data[:8192]:
            continue  # binary: `test_no_binary_files.py` decides which may be
        if lines := findings(data.decode("utf-8", errors="replace")):
            found[str(path)] = lines
    assert found == {}


def test_the_pattern_finds_what_it_should() -> None:
    assert findings("open('" + "/" + "home" + "/somebody/x')")
    assert findings("see https://" + "pypi" + ".org/project/x")
    assert findings("../shared/data and out/demo and /adapters/merge") == []

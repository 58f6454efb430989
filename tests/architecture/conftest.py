"""The source tree as the architecture tests see it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def root() -> Path:
    """Gives the repository's folder."""
    return ROOT


@pytest.fixture(scope="session")
def repository_files() -> list[Path]:
    """Gives every file that is tracked or would be: what git does not ignore.

    Fails outside a git checkout: a test that looks at no file would pass for the wrong reason.
    """
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    # A tracked file that was just deleted is still in the index.
    files = [p for name in listed.decode().split("\0") if name and (p := ROOT / name).is_file()]
    assert len(files) > 20
    return files


@pytest.fixture(scope="session")
def source_files() -> list[Path]:
    """Gives the package's Python files."""
    files = sorted((ROOT / "src" / "cambium").rglob("*.py"))
    assert files
    return files

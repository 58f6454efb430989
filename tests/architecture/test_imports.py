"""The two columns hold: `lint-imports` finds no broken contract, and would find one."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PACKAGES = {"core", "trust", "lifecycle", "models", "learn", "evals"}
COMMAND = [sys.executable, "-c", "import sys; from importlinter.cli import lint_imports; "
           "sys.exit(lint_imports(config_filename=sys.argv[1], no_cache=True))"]  # fmt: skip

# Each breaks one rule: the file, and the import that does not belong there.
PLANTED = {
    "trust takes torch": ("trust/planted.py", "import torch"),
    "core takes cryptography": ("core/planted.py", "import cryptography"),
    "core takes trust": ("core/planted.py", "import cambium.trust"),
    "trust takes lifecycle": ("trust/planted.py", "import cambium.lifecycle"),
    "learn takes evals": ("learn/planted.py", "import cambium.evals"),
    "models takes trust": ("models/planted.py", "import cambium.trust"),
    "evals takes lifecycle": ("evals/planted.py", "import cambium.lifecycle"),
    "learn takes serve": ("learn/planted.py", "import cambium.serve"),
    "learn opens sockets": ("learn/planted.py", "import socket"),
    "learn opens files": ("learn/planted.py", "from pathlib import Path"),
    "the store takes torch": ("serve/store/planted.py", "import torch"),
    "the store takes models": ("serve/store/planted.py", "import cambium.models"),
}


def lint(folder: Path, config: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, str(config)],
        cwd=folder,
        env={"PYTHONPATH": "src"},
        capture_output=True,
        text=True,
    )


def test_every_contract_is_kept(root: Path) -> None:
    done = lint(root, root / "pyproject.toml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_package_has_its_place(root: Path) -> None:
    """A new package without a layer would be free of every rule."""
    contracts = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    layers = next(
        c for c in contracts["tool"]["importlinter"]["contracts"] if c["type"] == "layers"
    )
    placed = {
        name.strip(" ()")
        for layer in layers["layers"]
        for name in layer.replace("|", ":").split(":")
    }
    folder = root / "src" / "cambium"
    existing = {p.parent.name for p in folder.glob("*/__init__.py")}
    existing |= {p.stem for p in folder.glob("*.py")} - {"__init__"}
    assert existing - placed == set()
    assert existing >= PACKAGES


@pytest.mark.parametrize("rule", PLANTED)
def test_a_planted_import_is_refused(rule: str, root: Path, tmp_path: Path) -> None:
    """The positive control: a skeleton of the same packages with one import too many."""
    place, statement = PLANTED[rule]
    package = root / "src" / "cambium"
    for module in [*package.rglob("__init__.py"), package / "serve" / "jobs.py"]:
        copy = tmp_path / module.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.touch()
    config = tmp_path / "pyproject.toml"
    config.write_text((root / "pyproject.toml").read_text(encoding="utf-8"), encoding="utf-8")
    clean = lint(tmp_path, config)
    assert clean.returncode == 0, clean.stdout + clean.stderr
    (tmp_path / "src" / "cambium" / place).write_text(statement + "\n", encoding="utf-8")
    broken = lint(tmp_path, config)
    assert broken.returncode == 1
    assert "planted" in broken.stdout

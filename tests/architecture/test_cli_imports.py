"""`cambium --help` answers at once: nothing heavy is imported to print it."""

from __future__ import annotations

import json
import subprocess
import sys

HEAVY = [
    "torch",
    "transformers",
    "sqlalchemy",
    "fastapi",
    "numpy",
    "scipy",
    "sentence_transformers",
]

SCRIPT = """
import json, sys
sys.argv = ["cambium", *{arguments}]
from cambium.cli import main
try:
    status = main()
except SystemExit as end:
    status = end.code
print(json.dumps({{"status": status or 0, "modules": sorted(sys.modules)}}), file=sys.stderr)
"""


def run(*arguments: str) -> tuple[str, dict]:
    script = SCRIPT.format(arguments=list(arguments))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(done.stderr.splitlines()[-1])


def test_help_imports_nothing_heavy() -> None:
    printed, seen = run("--help")
    assert seen["status"] == 0
    assert "merge" in printed
    assert [name for name in HEAVY if name in seen["modules"]] == []


def test_the_probe_sees_what_is_imported() -> None:
    _, seen = run("--help")
    assert "cambium.cli" in seen["modules"]

"""The tutorial runs as it stands: every bash block, in order, in one shell."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "docs" / "tutorial" / "first-merge.md"


@pytest.mark.timeout(1200)
def test_every_block_of_the_tutorial_runs() -> None:
    text = TUTORIAL.read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    assert 0 < len(blocks) == text.count("```bash")
    script = "set -euo pipefail\n" + "\n".join(blocks)
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert "awaiting_approval" in done.stdout or "mergeable" in done.stdout
    assert "rollback" in done.stdout

from __future__ import annotations

from pathlib import Path

import pytest

from cambium.evals.errors import TaskInvalid
from cambium.evals.tasks.yaml_text import read_settings


@pytest.mark.parametrize("digits", ["9" * 20_000, "0x" + "f" * 20_000, "1_" * 9_000 + "1"])
def test_a_number_without_end_is_refused_at_once(tmp_path: Path, digits: str) -> None:
    path = tmp_path / "task.yaml"
    path.write_text(f"task: a\nnum_fewshot: {digits}\n", encoding="utf-8")
    with pytest.raises(TaskInvalid, match="more than 300 characters"):
        read_settings(path)

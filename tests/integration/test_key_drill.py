"""The rehearsal against a real server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cambium.cli import drill, main


def test_a_revocation_is_rehearsed_and_timed(tmp_path: Path, capsys: Any) -> None:
    assert main(["key", "drill", "--out", str(tmp_path / "drill.json")]) == 0
    assert "out of service" in capsys.readouterr().out
    record = json.loads((tmp_path / "drill.json").read_text())
    assert record["ok"] and len(record["steps"]) == 8
    assert all(step["ms"] > 0 for step in record["steps"])


def test_a_step_that_goes_otherwise_is_told(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def half(http: Any, keys: Any) -> list[dict[str, Any]]:
        return [{"step": "revoke", "ms": 1.0, "ok": False, "detail": "200"}]

    monkeypatch.setattr(drill, "_rehearse", half)
    assert main(["key", "drill", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False

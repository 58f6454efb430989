"""An open state in a folder of its own, on each database."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.postgres import fresh_database

from cambium.serve.store.state import State


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest) -> str | None:
    return fresh_database() if request.param == "postgres" else None


@pytest.fixture
def state(tmp_path: Path, url: str | None) -> Iterator[State]:
    with State.open(tmp_path / "state", url=url) as opened:
        yield opened

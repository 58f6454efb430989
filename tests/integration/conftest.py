"""A tiny base, the people who sign, and a server of theirs in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.serving import People, Server, served, small_config, tiny_base


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def people() -> People:
    return People()


@pytest.fixture
def server(base: Path, people: People, tmp_path: Path) -> Iterator[Server]:
    people.init(tmp_path)
    with served(small_config(tmp_path, model=str(base)), people) as found:
        yield found

"""Pages do not change under a running server, whatever an update puts on the disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from jinja2 import FileSystemLoader

from cambium.serve.dashboard import rendering


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of templates in the place of the installed ones."""
    monkeypatch.setattr(rendering, "PackageLoader", lambda _: FileSystemLoader(tmp_path))
    rendering._environment.cache_clear()  # pyright: ignore[reportPrivateUsage]
    yield tmp_path
    rendering._environment.cache_clear()  # pyright: ignore[reportPrivateUsage]


def test_a_page_is_the_one_that_was_there_at_the_start(installed: Path) -> None:
    page = installed / "page.html"
    page.write_text("{% from 'parts.html' import said %}{{ said() }}")
    (installed / "parts.html").write_text("{% macro said() %}as at the start{% endmacro %}")
    rendering.load()
    page.write_text("{{ what_only_newer_code_gives }}")
    (installed / "parts.html").unlink()
    assert b"as at the start" in rendering.render_for_strangers("page.html").body


def test_a_page_that_cannot_be_read_is_found_at_the_start(installed: Path) -> None:
    (installed / "page.html").write_text("{% if")
    with pytest.raises(Exception, match=r"unexpected|Expected"):
        rendering.load()

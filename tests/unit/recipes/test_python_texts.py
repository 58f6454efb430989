from __future__ import annotations

import ast
from pydoc_data.topics import topics

import pytest

from cambium.recipes import python_texts
from cambium.recipes.python_texts import (
    docstrings,
    is_held_out,
    library_sources,
    reference_prose,
)


def test_the_reference_is_kept_whole_in_chunks() -> None:
    chunks = reference_prose()
    assert chunks == reference_prose()
    by_topic: dict[str, list[str]] = {}
    for chunk in chunks:
        by_topic.setdefault(chunk.source.removeprefix("pydoc:"), []).append(chunk.text)
    assert by_topic.keys() == {name for name, text in topics.items() if text.strip()}
    for name, parts in by_topic.items():
        assert "\n\n".join(parts).split() == topics[name].split()
    assert all(len(c.text) <= 2000 or "\n\n" not in c.text for c in chunks)


def test_a_fifth_is_held_out_by_its_hash() -> None:
    chunks = reference_prose()
    held = [c for c in chunks if is_held_out(c.text)]
    assert 0.1 < len(held) / len(chunks) < 0.3
    assert not is_held_out(held[0].text + " ") or is_held_out(held[0].text)


@pytest.fixture
def library(tmp_path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    monkeypatch.setattr(python_texts, "_library_folder", lambda: tmp_path)
    return tmp_path


def test_docstrings_come_once_and_long_enough(library) -> None:  # type: ignore[no-untyped-def]
    long, other = "A sentence of some length. " * 5, "Another sentence, longer. " * 5
    library.joinpath("a.py").write_text(f'"""{long}"""\ndef f():\n    """{other}"""\n')
    library.joinpath("b.py").write_text(f'class C:\n    """{other}"""\n    """short"""\n')
    library.joinpath("broken.py").write_text("def (:\n")
    library.joinpath("latin.py").write_bytes(b"x = '\xff'\n")
    library.joinpath("test").mkdir()
    library.joinpath("test", "t.py").write_text(f'"""{"Never read. " * 20}"""\n')
    found = docstrings()
    assert [d.source for d in found] == ["a", "a.f"]
    assert found[0].text.split() == long.split()


def test_sources_come_without_docstrings(library) -> None:  # type: ignore[no-untyped-def]
    body = "".join(f"    x_{i} = {i}\n" for i in range(100))
    library.joinpath("a.py").write_text(f'"""Known."""\n\ndef f():\n    """Also known."""\n{body}')
    library.joinpath("short.py").write_text("x = 1\n")
    (found,) = library_sources()
    assert found.source == "a.py" and "nown" not in found.text and "x_99 = 99" in found.text
    ast.parse(found.text)


def test_every_python_has_enough_of_it(library_code: list[str]) -> None:
    assert sum(map(len, library_code)) > 5_000_000
    assert len(library_code) > 300

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cambium.cli.sources import CALL_BYTES, Bounds, cut_text, deal, read_source
from cambium.core.errors import ConfigError, DataError
from cambium.serve.errors import NotUtf8, TooLarge

BOUNDS = Bounds(max_examples=3, max_example_bytes=1000)


@given(st.text(), st.integers(4, 50))
def test_pieces_are_the_text_and_none_is_longer(text: str, max_bytes: int) -> None:
    pieces = cut_text(text, max_bytes)
    assert "".join(pieces) == text
    assert all(0 < len(p.encode()) <= max_bytes for p in pieces)


def test_a_cut_falls_after_a_paragraph_where_there_is_one() -> None:
    assert cut_text("aaaa aaaa\n\nbb bb bb bb", 14) == ["aaaa aaaa\n\n", "bb bb bb bb"]


@given(st.lists(st.integers(1, 900), max_size=40), st.integers(1, 10))
def test_calls_hold_every_example_once_in_order_within_bounds(sizes: list, most: int) -> None:
    examples = [{"text": "x" * size} for size in sizes]
    calls = list(deal(examples, Bounds(max_examples=most, max_example_bytes=1000)))
    assert [e for call in calls for e in call] == examples
    assert all(1 <= len(call) <= most for call in calls)


def test_a_call_holds_no_more_than_its_steps_can_read() -> None:
    examples = [{"text": "x" * (CALL_BYTES // 3)} for _ in range(7)]
    calls = list(deal(examples, Bounds(max_examples=64, max_example_bytes=CALL_BYTES)))
    assert [len(call) for call in calls] == [2, 2, 2, 1]


def test_an_example_over_the_bound_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(TooLarge, match="example 2"):
        deal([{"text": "fine"}, {"text": "é" * 600}], BOUNDS)


def test_a_folder_is_read_in_order_and_says_what_it_left_out(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text("# second\n")
    (tmp_path / "a.txt").write_text("first\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.JSONL").write_text('{"prompt": "p", "completion": "c"}\n\n')
    (tmp_path / "d.png").write_bytes(b"\x89PNG")
    source = read_source(tmp_path)
    assert [next(iter(e.values())) for e in source.examples] == ["first\n", "# second\n", "p"]
    assert (source.num_files, source.ignored) == (3, 1)


def test_all_four_shapes_and_a_byte_order_mark(tmp_path: Path) -> None:
    shapes = [
        {"text": "t"},
        {"prompt": "p", "completion": "c"},
        {"messages": [{"role": "assistant", "content": "a"}]},
        {"prompt": "p", "chosen": "c", "rejected": "r"},
    ]
    file = tmp_path / "all.jsonl"
    lines = "\r\n".join(json.dumps(s) for s in shapes)
    file.write_bytes(b"\xef\xbb\xbf" + lines.encode())
    assert list(read_source(file).examples) == shapes


def test_a_separator_inside_a_string_does_not_end_the_line(tmp_path: Path) -> None:
    file = tmp_path / "one.jsonl"
    file.write_text('{"text": "a\u2028b"}\n', encoding="utf-8")
    assert read_source(file).examples == ({"text": "a\u2028b"},)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "is not JSON"),
        ("[1]", "no known shape"),
        ('{"text": "a", "more": 1}', "no known shape"),
        ('{"prompt": "a"}', "no known shape"),
    ],
)
def test_a_line_that_is_no_example_is_named(tmp_path: Path, line: str, why: str) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(DataError, match=rf"bad\.jsonl:2 .*{why}"):
        read_source(file)


def test_bytes_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    file = tmp_path / "latin.txt"
    file.write_bytes("né".encode("latin-1"))
    with pytest.raises(NotUtf8, match="byte 1 is 0xe9"):
        read_source(file)


def test_nothing_and_other_kinds_are_refused(tmp_path: Path) -> None:
    (tmp_path / "blank.txt").write_text(" \n\t\n")
    with pytest.raises(DataError, match="nothing to learn"):
        read_source(tmp_path)
    with pytest.raises(ConfigError, match="no known kind"):
        read_source(tmp_path / "blank.pdf")
    with pytest.raises(ConfigError, match="cannot read"):
        read_source(tmp_path / "absent.txt")

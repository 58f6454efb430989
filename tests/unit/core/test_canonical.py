from __future__ import annotations

import hashlib
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cambium.core.canonical import canonical_json, digest_bytes, digest_json, is_digest
from cambium.core.errors import DataError

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(codec="utf-8")),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4),
    ),
    max_leaves=12,
)


def reversed_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: reversed_keys(value[k]) for k in reversed(list(value))}
    return [reversed_keys(v) for v in value] if isinstance(value, list) else value


@given(value=VALUES)
def test_one_value_has_one_encoding_that_reads_back(value: Any) -> None:
    data = canonical_json(value)
    assert json.loads(data) == value
    assert canonical_json(json.loads(data)) == data == canonical_json(reversed_keys(value))
    assert digest_json(value) == digest_bytes(data)


def test_the_encoding_is_compact_sorted_utf8() -> None:
    assert canonical_json({"b": [1, 2.5], "a": "é\n"}) == '{"a":"é\\n","b":[1,2.5]}'.encode()
    assert canonical_json((1, 2)) == canonical_json([1, 2])


@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, -math.inf, {"a": [math.nan]}, {1: "a"}, {"a": {None: 1}}, [{True: 1}],
     b"bytes", {"a": {1, 2}}, object(), "\ud800", {"\udfff": 1}],
)  # fmt: skip
def test_what_json_cannot_say_is_refused(value: object) -> None:
    with pytest.raises(DataError, match="not canonical JSON"):
        canonical_json(value)


def test_a_digest_is_sha256_in_full() -> None:
    found = digest_bytes(b"abc")
    assert found == "sha256:" + hashlib.sha256(b"abc").hexdigest()
    assert is_digest(found)


@pytest.mark.parametrize(
    "text",
    [None, 3, "", "sha256:", "a" * 64, "sha256:" + "a" * 63, "sha256:" + "A" * 64,
     "sha256:" + "a" * 65, "sha256:" + "a" * 64 + "\n", "sha512:" + "a" * 64],
)  # fmt: skip
def test_anything_else_is_no_digest(text: object) -> None:
    assert not is_digest(text)

from __future__ import annotations

import pytest

from cambium.core.errors import DataError
from cambium.serve.names import parse_model_name

DIGEST = "sha256:" + "a" * 64


def test_a_model_name_may_carry_a_digest() -> None:
    assert parse_model_name("law-1") == ("law-1", None)
    assert parse_model_name(f"law-1@{DIGEST}") == ("law-1", DIGEST)


@pytest.mark.parametrize(
    "text",
    ["", "@", "a@", "a@b", f"@{DIGEST}", f"a@{DIGEST[:-1]}", f"a@{DIGEST}@x", "../x", "a/b", "a b",
     "-a", ".a", "a" * 65, "é", "a\n", f"a\n@{DIGEST}"],
)  # fmt: skip
def test_other_names_are_refused(text: str) -> None:
    with pytest.raises(DataError, match="not a model name"):
        parse_model_name(text)

from __future__ import annotations

import pytest

from cambium.core import errors
from cambium.core.errors import CambiumError, DataError, TrustError
from cambium.serve.errors import NotFound

ALL = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, CambiumError)]


@pytest.mark.parametrize("kind", ALL, ids=lambda k: k.__name__)
def test_every_error_says_what_and_how_to_mend_it(kind: type[CambiumError]) -> None:
    error = kind("what\n  happened", mend="do this", detail={"a": 1})
    assert error.one_line() == "what happened: do this"
    assert str(error) == error.message and error.detail == {"a": 1}
    assert kind("what").one_line() == "what" and kind("what").detail == {}
    assert kind.code.replace("_", "").isalnum() and kind.code.islower()
    assert not issubclass(kind, ValueError)


def test_one_root_and_its_branches() -> None:
    assert not issubclass(TrustError, DataError | NotFound)
    assert len({kind.code for kind in ALL}) == len(ALL)

"""What a log says of an error that nobody foresaw."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from cambium.serve.telemetry import write_logs

SECRET = "the heron of Ullapool"


@pytest.fixture(autouse=True)
def _logs_as_before() -> Iterator[None]:
    root, own = logging.getLogger(), logging.getLogger("cambium")
    before = (root.handlers[:], root.level, own.level)
    yield
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    own.setLevel(before[2])


def _quote(text: str) -> None:
    raise ValueError(f"{text} cannot be read")


@pytest.mark.parametrize("form", ["text", "json"])
def test_an_error_is_logged_by_kind_and_place_without_its_words(
    form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_logs(form)
    try:
        try:
            _quote(SECRET)
        except ValueError as error:
            raise KeyError(SECRET) from error
    except KeyError:
        logging.getLogger("cambium.serve.jobs").exception("job %s failed", "p-1")
    written = capsys.readouterr().err
    said = json.loads(written)["exc_info"] if form == "json" else written
    assert "job p-1 failed" in written
    assert said.index("in _quote") < said.index("ValueError") < said.index("KeyError")
    assert SECRET not in written

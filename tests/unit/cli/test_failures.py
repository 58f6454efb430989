from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cambium.cli.failures import BROKEN, NO, WRONG_CALL, failure, from_problem, one_line
from cambium.core import errors
from cambium.serve import errors as serve_errors


@pytest.mark.parametrize(
    ("http", "status"),
    [(400, 2), (401, 2), (403, 1), (404, 2), (409, 1), (410, 2), (413, 2), (422, 2), (302, 3),
     (500, 3), (503, 3), (507, 3)],
)  # fmt: skip
def test_an_http_status_becomes_an_exit_status(http: int, status: int) -> None:
    assert from_problem(http, {"detail": "x"}).status == status


def test_a_problem_says_what_why_and_mend() -> None:
    problem = {
        "title": "Conflict",
        "detail": "proposal p1 cannot be merged.",
        "blockers": ["quorum: 1 of 2 approvals", "alignment: missing"],
        "mend": "collect another approval",
        "code": "not_mergeable",
    }
    ended = from_problem(409, problem)
    assert ended.line == (
        "proposal p1 cannot be merged: quorum: 1 of 2 approvals; alignment: missing: "
        "collect another approval"
    )
    assert ended.code == "not_mergeable"


def test_an_answer_that_says_nothing_is_not_silent() -> None:
    assert "500" in from_problem(500, {}).line


def test_what_a_framework_puts_into_detail_is_shown_as_it_is() -> None:
    line = from_problem(422, {"detail": [{"loc": ["body", "steps"]}]}).line
    assert '"steps"' in line


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.AuditBroken("x"), NO),
        (errors.SignatureInvalid("x"), NO),
        (errors.PolicyInvalid("x"), WRONG_CALL),
        (serve_errors.NotUtf8("x"), WRONG_CALL),
        (errors.ConfigError("x"), WRONG_CALL),
        (serve_errors.StateLocked("x"), WRONG_CALL),
        (serve_errors.StateCorrupt("x"), BROKEN),
        (serve_errors.StorageFull("x"), BROKEN),
        (RuntimeError("x"), BROKEN),
        (OSError(28, "No space left on device"), BROKEN),
        (KeyboardInterrupt(), 130),
    ],
)
def test_an_error_met_here_becomes_an_exit_status(error: BaseException, status: int) -> None:
    assert failure(error).status == status


def test_an_unforeseen_error_names_its_place() -> None:
    with pytest.raises(KeyError) as caught:
        {}["absent"]
    assert "KeyError at test_failures.py:" in failure(caught.value).line


@given(st.text())
def test_a_line_is_one_line_and_nothing_a_terminal_acts_on(text: str) -> None:
    line = one_line(text)
    assert line.isprintable()
    assert len(line.splitlines()) <= 1

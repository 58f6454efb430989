from __future__ import annotations

import json

import pytest
from starlette.exceptions import HTTPException

from cambium.core.errors import CambiumError
from cambium.serve.api.openai.errors import openai_error_response, refusal
from cambium.serve.errors import AdapterExpired, ModelNotFound, TooLarge


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (ModelNotFound("no"), 404, "invalid_request_error", "model_not_found"),
        (TooLarge("no"), 413, "invalid_request_error", "too_large"),
        (AdapterExpired("no"), 410, "invalid_request_error", "adapter_expired"),
        (CambiumError("no"), 500, "server_error", "internal"),
        (HTTPException(405), 405, "invalid_request_error", "method_not_allowed"),
        (RuntimeError("no"), 500, "server_error", "internal"),
    ],
)
def test_each_error_has_its_status_and_shape(
    error: Exception, status: int, kind: str, code: str
) -> None:
    answer = openai_error_response(error, headers={"x-cambium-request-id": "r"})
    body = json.loads(bytes(answer.body))["error"]
    assert answer.status_code == status
    assert (body["type"], body["code"]) == (kind, code)
    assert set(body) == {"message", "type", "param", "code"}
    assert answer.headers["x-cambium-request-id"] == "r"


def test_an_unforeseen_error_keeps_its_text_inside() -> None:
    assert b"secret" not in bytes(openai_error_response(RuntimeError("secret")).body)


def test_a_refusal_names_its_parameter_and_the_mend() -> None:
    error = refusal("x is not offered", param="x", code="unsupported_parameter", mend="leave it")
    body = json.loads(bytes(openai_error_response(error).body))["error"]
    assert body["param"] == "x" and body["code"] == "unsupported_parameter"
    assert body["message"] == "x is not offered: leave it"

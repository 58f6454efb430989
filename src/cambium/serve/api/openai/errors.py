"""Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from cambium.core.errors import CambiumError, DataError
from cambium.serve.api.problems import STATUS, headers_of


def refusal(
    message: str, *, param: str | None, code: str = DataError.code, mend: str = ""
) -> DataError:
    """Returns the error for a request that names `param` wrongly, with OpenAI's finer `code`."""
    return DataError(message, mend=mend, detail={"param": param, "code": code})


def openai_error_response(
    error: Exception, *, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """Returns any error of a path under /v1 as OpenAI's clients expect it.

    The text of an unforeseen error stays inside: the caller learns only that it was ours.
    """
    status, message, param, code = 500, "the server failed; its log says why", None, "internal"
    if isinstance(error, CambiumError):
        status = STATUS.get(error.code, 500)
        message = error.one_line()
        param = error.detail.get("param")
        code = str(error.detail.get("code") or error.code)
        headers = {**headers_of(error), **(headers or {})}
    elif isinstance(error, HTTPException):
        status, message = error.status_code, str(error.detail)
        code = {404: "not_found", 405: "method_not_allowed"}.get(status, "http_error")
        headers = {**(error.headers or {}), **(headers or {})}
    kind = "invalid_request_error" if status < 500 else "server_error"
    body = {"message": message, "type": kind, "param": param, "code": code}
    return JSONResponse({"error": body}, status_code=status, headers=dict(headers or {}))


def learning_refused(message: str, *, mend: str) -> DataError:
    """Returns the refusal of a request that wants to teach where it may not."""
    return refusal(message, param="learn", code="learn_unavailable", mend=mend)

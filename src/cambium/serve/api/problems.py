"""Errors as answers: one table of HTTP statuses, RFC 9457 problem details."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import Request
from fastapi.responses import JSONResponse

from cambium.core.errors import CambiumError
from cambium.serve.errors import Unauthenticated

STATUS: dict[str, int] = {
    "internal": 500,
    "config_invalid": 500,
    "invalid_request": 400,
    "not_utf8": 400,
    "too_large": 413,
    "task_invalid": 400,
    "loss_unavailable": 400,
    "not_found": 404,
    "model_not_found": 404,
    "adapter_not_found": 404,
    "domain_not_found": 404,
    "proposal_not_found": 404,
    "revision_not_found": 404,
    "trace_not_found": 404,
    "model_unusable": 400,
    "adapter_kind_refused": 409,
    "adapter_expired": 410,
    "adapter_elsewhere": 421,
    "adapter_quarantined": 409,
    "unauthenticated": 401,
    "role_missing": 403,
    "page_forged": 403,
    "rate_limited": 429,
    "consent_missing": 409,
    "budget_exceeded": 409,
    "illegal_transition": 409,
    "not_mergeable": 409,
    "gate_broken": 500,
    "storage_full": 507,
    "state_locked": 409,
    "state_unreachable": 503,
    "state_corrupt": 500,
    "not_current": 503,
    "stopped": 503,
    "killed": 503,
    "trust_error": 403,
    "policy_missing": 409,
    "policy_invalid": 403,
    "signature_invalid": 403,
    "key_unknown": 403,
    "duplicate_signer": 409,
    "quorum_missing": 409,
    "signature_expired": 403,
    "state_version_stale": 409,
    "digest_mismatch": 403,
    "attestation_refused": 403,
    "audit_broken": 500,
}


def problem(error: CambiumError, request: Request, *, status: int | None = None) -> JSONResponse:
    """Returns the problem details of an error: what, why, the mend and a code that never changes.

    `status` is for what the web framework refuses itself; else the table says it.
    """
    status = status or STATUS.get(error.code, 500)
    body: dict[str, object] = {
        "type": f"https://cambium.dev/errors/{error.code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": error.message,
        "code": error.code,
        "mend": error.mend,
        "instance": request.url.path,
    }
    body |= {k: v for k, v in error.detail.items() if k not in body}
    return JSONResponse(
        body, status_code=status, headers=headers_of(error), media_type="application/problem+json"
    )


def headers_of(error: CambiumError) -> dict[str, str]:
    """Returns what HTTP itself wants said of an error (RFC 9110, sections 10.2.3 and 11.6.1)."""
    if error.code == Unauthenticated.code:
        return {"www-authenticate": "Bearer"}
    wait_s = error.detail.get("retry_after_s")
    return {} if wait_s is None else {"retry-after": str(wait_s)}

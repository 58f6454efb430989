"""Routes of bearer tokens."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter
from pydantic import Field

from cambium.serve.api.bodies import Body
from cambium.serve.runtime import Runtime
from cambium.serve.store.records import TokenRow
from cambium.serve.tokens import DEFAULT_PER_MINUTE, TokenOrder


class TokenBody(Body):
    """Whose token, and for what."""

    name: str
    tenant: str
    roles: list[str] = Field(max_length=8)
    requests_per_minute: int = DEFAULT_PER_MINUTE
    days: int | None = None


def router(runtime: Runtime) -> APIRouter:
    """Returns the routes."""
    routes = APIRouter(tags=["tokens"])
    tokens = runtime.tokens

    @routes.get("/tokens")
    async def list_tokens() -> dict[str, Any]:
        return {"tokens": [_view(row) for row in await asyncio.to_thread(tokens.list)]}

    @routes.post("/tokens", status_code=201)
    async def make(body: TokenBody) -> dict[str, Any]:
        row, token = await asyncio.to_thread(tokens.make, TokenOrder(**body.model_dump()))
        return {**_view(row), "token": token}

    @routes.delete("/tokens/{token_id}")
    async def revoke(token_id: str) -> dict[str, Any]:
        await asyncio.to_thread(tokens.revoke, token_id)
        return {"token_id": token_id, "revoked": True}

    return routes


def _view(row: TokenRow) -> dict[str, Any]:
    return {
        "token_id": row.token_id,
        "name": row.name,
        "tenant": row.tenant,
        "roles": list(row.roles),
        "requests_per_minute": row.requests_per_minute,
        "created_at": row.created_at // 1000,
        "expires_at": row.expires_at // 1000 if row.expires_at else None,
        "revoked_at": row.revoked_at // 1000 if row.revoked_at else None,
    }

"""Routes of the kill switch."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import APIRouter
from pydantic import Field

from cambium.serve.api.bodies import Body
from cambium.serve.api.review import SignatureBody
from cambium.serve.runtime import Runtime
from cambium.serve.signed_records import signature_from_json


class KillBody(Body):
    """Why everything is to stop, and who says so; one valid signature is enough."""

    reason: str = Field(min_length=1, max_length=1000)
    signatures: list[SignatureBody] = Field(min_length=1, max_length=64)


class ReviveBody(Body):
    """Who lifts the kill, over its digest."""

    reason: str = Field(default="", max_length=1000)
    signatures: list[SignatureBody] = Field(max_length=64)


def router(runtime: Runtime) -> APIRouter:
    """Returns the routes; they answer in every state of the server."""
    routes = APIRouter(tags=["kill switch"])
    switch = runtime.kill
    # Other calls may hold every thread of the server's pool.
    own = ThreadPoolExecutor(2, thread_name_prefix="kill")

    @routes.get("/kill")
    async def standing() -> dict[str, Any]:
        return await asyncio.get_running_loop().run_in_executor(own, switch.view)

    @routes.post("/kill")
    async def kill(body: KillBody) -> dict[str, Any]:
        signatures = [signature_from_json(s.model_dump()) for s in body.signatures]
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(own, switch.pull, body.reason, signatures)
        return await loop.run_in_executor(own, switch.view)

    @routes.post("/revive")
    async def revive(body: ReviveBody) -> dict[str, Any]:
        signatures = [signature_from_json(s.model_dump()) for s in body.signatures]
        return await asyncio.get_running_loop().run_in_executor(own, switch.revive, signatures)

    return routes

"""The page of the kill switch: what stopping would stop, and what still runs."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response

from cambium.core.nouns import Action
from cambium.serve.access import caller_of
from cambium.serve.dashboard import views
from cambium.serve.dashboard.rendering import render
from cambium.serve.runtime import Runtime


def router(runtime: Runtime) -> APIRouter:
    """Returns the route."""
    routes = APIRouter(tags=["pages"])
    # Other pages may hold every thread of the server's pool.
    own = ThreadPoolExecutor(1, thread_name_prefix="stop page")

    @routes.get("/stop", response_class=HTMLResponse)
    async def stop(request: Request) -> Response:
        return await asyncio.get_running_loop().run_in_executor(own, _page, request, runtime)

    return routes


def _page(request: Request, runtime: Runtime) -> Response:
    view, sees_all = runtime.kill.view(), caller_of(request).sees_all
    waiting = runtime.waiting.list(Action.REVIVE)
    return render(
        request,
        runtime,
        "stop.html",
        view=view,
        act=partial(views.act, view),
        signed=next((a for a in waiting if a["target"] == view["digest"]), None),
        policy=runtime.policy,
        state=runtime.config.state,
        running={
            what: views.told(count, sees_all=sees_all)
            for what, count in (
                ("Answers and jobs' own texts being written or waiting", runtime.engine.num_active),
                ("Lessons being learned or waiting", runtime.lessons.num_pending),
                ("Background jobs", len(runtime.jobs.pending)),
            )
        },
    )

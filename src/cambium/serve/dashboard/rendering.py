"""How a page is made: templates, what every page says, and what a browser may do with it."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse, Response
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from cambium.core.canonical import canonical_json
from cambium.serve.access import caller_of
from cambium.serve.dashboard import views
from cambium.serve.errors import NotFound
from cambium.serve.runtime import Runtime
from cambium.serve.sessions import COOKIE

# Nothing from elsewhere, nothing inline, no frame around the page.
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "cache-control": "no-store",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
}
STATIC = {
    "cambium.css": "text/css",
    "cambium.svg": "image/svg+xml",
    "acts.js": "text/javascript",
    "follow.js": "text/javascript",
    "keys.js": "text/javascript",
}


def render(
    request: Request, runtime: Runtime, name: str, *, status_code: int = 200, **fields: Any
) -> Response:
    """Returns a page of the review room for whoever asks."""
    standing = {
        "path": request.url.path,
        "revision": runtime.revision,
        "attestation": runtime.identity.attestation_label,
        "killed": runtime.kill.killed,
        "has_tokens": runtime.tokens.demanded,
        "page_secret": runtime.sessions.page_secret(request.cookies.get(COOKIE, "")),
    }
    may = caller_of(request).may
    html = _environment().get_template(name).render(standing=standing, may=may, **fields)
    return HTMLResponse(html, status_code=status_code, headers=HEADERS)


def render_for_strangers(name: str, *, status_code: int = 200, **fields: Any) -> Response:
    """Returns a page that tells nothing of the server."""
    html = _environment().get_template(name).render(standing=None, **fields)
    return HTMLResponse(html, status_code=status_code, headers=HEADERS)


def static_file(name: str) -> Response:
    """Returns a script or the sheet.

    Raises:
        NotFound: there is none of this name.
    """
    if name not in STATIC:
        raise NotFound(f"nothing at /static/{name[:80]}", mend="see GET /")
    # Not for long: after an update of the server, pages and scripts have to agree again.
    headers = {**HEADERS, "cache-control": "max-age=60"}
    return Response(_static(name), media_type=STATIC[name], headers=headers)


def load() -> None:
    """Reads every template, script and sheet.

    From then on the pages are those of the code that runs, whatever an update puts on the disk.
    """
    for name in _environment().list_templates():
        _environment().get_template(name)
    for name in STATIC:
        _static(name)


@cache
def _environment() -> Environment:
    found = Environment(
        loader=PackageLoader("cambium.serve.dashboard"),
        auto_reload=False,
        cache_size=-1,
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters.update(
        short=views.short,
        counted=views.counted,
        question=views.question,
        sign=views.sign,
        signed=views.signed,
        number=views.number,
        when=views.when,
        versioned=views.versioned,
        json=lambda value: canonical_json(value).decode(),
    )
    return found


@cache
def _static(name: str) -> bytes:
    return (resources.files("cambium.serve.dashboard") / "static" / name).read_bytes()

"""Who is asking, and what each role may ask for: one table, held against the routes by a test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Request
from starlette.requests import cookie_parser
from starlette.routing import compile_path

from cambium.core.errors import DataError
from cambium.core.nouns import DEFAULT_TENANT
from cambium.serve.config import LOOPBACK
from cambium.serve.errors import AdapterNotFound, NotFound, PageForged, RoleMissing, Unauthenticated
from cambium.serve.names import qualified
from cambium.serve.rate_limits import RateLimits
from cambium.serve.sessions import COOKIE, PAGE_HEADER, Sessions
from cambium.serve.store.records import TokenRow
from cambium.serve.tokens import EVERY_TENANT, Role, Tokens

_ALL = frozenset(Role)
_ASK = frozenset({Role.CLIENT, Role.LEARNER})
_TEACH = frozenset({Role.LEARNER})
_PROPOSE = frozenset({Role.LEARNER, Role.REVIEWER})
_READ = frozenset({Role.LEARNER, Role.REVIEWER, Role.OPERATOR})
_REVIEW = frozenset({Role.REVIEWER})
_RELEASE = frozenset({Role.REVIEWER, Role.OPERATOR})
_OPERATE = frozenset({Role.OPERATOR})

# Needs no token: who watches whether the server lives should have none, and whoever signs in has
# none yet.
OPEN = frozenset({
    ("GET", "/healthz"), ("GET", "/readyz"), ("GET", "/static/{name}"),
    ("GET", "/sign-in"), ("POST", "/sign-in"), ("POST", "/sign-out"),
})  # fmt: skip
SIGN_IN = "/sign-in"
# In order: the first template that fits decides. What is not here is not there.
ROUTES: tuple[tuple[str, str, frozenset[Role]], ...] = (
    ("GET", "/v1/models", _ALL),
    ("GET", "/v1/models/{model_id:path}", _ALL),
    ("POST", "/v1/chat/completions", _ASK),
    ("POST", "/v1/completions", _ASK),
    ("POST", "/v1/embeddings", _ASK),
    ("GET", "/traces/{request_id}", _ALL),
    ("POST", "/adapters/ephemeral", _TEACH),
    ("POST", "/learn/step", _TEACH),
    ("POST", "/adapters/propose_consolidation", _PROPOSE),
    ("POST", "/adapters/merge", _RELEASE),
    ("POST", "/adapters/{name}/replay", _READ),
    ("GET", "/adapters/{name}/export", _READ),
    ("GET", "/model-signing-key", _ALL),
    ("GET", "/adapters", _READ),
    ("GET", "/adapters/{name}", _READ),
    ("DELETE", "/adapters/{name}", _TEACH),
    ("DELETE", "/adapters/{name}/examples", _TEACH),
    ("GET", "/proposals", _READ),
    ("GET", "/proposals/{proposal_id}", _READ),
    ("GET", "/proposals/{proposal_id}/diff", _READ),
    ("POST", "/proposals/{proposal_id}/diff", _REVIEW),
    ("GET", "/proposals/{proposal_id}/card", _READ),
    ("POST", "/measurements", _READ),
    ("GET", "/weights", _READ),
    ("POST", "/gates/align_review", _REVIEW),
    # Valid by signature, whoever carries it.
    ("POST", "/proposals/{proposal_id}/approvals", _ALL),
    ("POST", "/proposals/{proposal_id}/waivers", _ALL),
    ("GET", "/proposals/{proposal_id}/evidence", _READ),
    ("POST", "/proposals/{proposal_id}/evidence", _ALL),
    ("POST", "/proposals/{proposal_id}/reject", _REVIEW),
    ("GET", "/revisions", _READ),
    ("POST", "/revisions/rollback", _RELEASE),
    ("POST", "/revisions/{number}/quarantine", _RELEASE),
    ("GET", "/revisions/{number}/export", _READ),
    # Valid by signature, like an approval.
    ("POST", "/signatures", _ALL),
    ("GET", "/signatures", _READ),
    ("GET", "/drift", _READ),
    ("GET", "/drift.svg", _READ),
    ("GET", "/keys", _READ),
    ("POST", "/keys", _RELEASE),
    ("POST", "/keys/{key_id}/revoke", _RELEASE),
    ("GET", "/policy", _READ),
    ("POST", "/policy", _RELEASE),
    ("GET", "/audit", _RELEASE),
    ("GET", "/audit/checkpoint", _RELEASE),
    ("GET", "/audit/successions", _RELEASE),
    ("GET", "/audit/proof", _RELEASE),
    ("GET", "/kill", _ALL),
    # By signature too: whoever may stop everything should not look for a token first.
    ("POST", "/kill", _ALL),
    ("POST", "/revive", _RELEASE),
    ("GET", "/tokens", _OPERATE),
    ("POST", "/tokens", _OPERATE),
    ("DELETE", "/tokens/{token_id}", _OPERATE),
    ("GET", "/metrics", _OPERATE),
    ("GET", "/openapi.json", _ALL),
    ("GET", "/", _READ),
    ("GET", "/review/{proposal_id}", _READ),
    ("GET", "/review/{proposal_id}/items/{item}", _REVIEW),
    ("GET", "/line", _READ),
    ("GET", "/my-key", _READ),
    ("GET", "/live", _READ),
    ("GET", "/trace/{request_id}", _READ),
    ("GET", "/events", _READ),
    ("GET", "/playground", _READ),
    ("POST", "/playground", _READ),
    ("GET", "/stop", _ALL),
)
# The changes that pages ask for. Whoever steals a session, which other ports of a host see, can
# make no token with it, enrol no key and sign no policy.
OF_PAGES = (
    ("POST", "/proposals/{proposal_id}/diff"),
    ("POST", "/proposals/{proposal_id}/approvals"),
    ("POST", "/proposals/{proposal_id}/waivers"),
    ("POST", "/proposals/{proposal_id}/reject"),
    ("POST", "/adapters/propose_consolidation"),
    ("POST", "/adapters/merge"),
    ("POST", "/gates/align_review"),
    ("POST", "/signatures"),
    ("POST", "/revisions/rollback"),
    ("POST", "/kill"),
    ("POST", "/revive"),
    ("POST", "/playground"),
)
# Looks at what a kill signs, and kills, which are counted by themselves.
KILLS_PER_MINUTE = 60
_COMPILED_OF_PAGES = [(method, compile_path(path)[0]) for method, path in OF_PAGES]
_READING = frozenset({"GET", "HEAD"})
_COMPILED = [(method, compile_path(path)[0], roles) for method, path, roles in ROUTES]
_OPEN = [(method, compile_path(path)[0]) for method, path in OPEN]


def is_open(method: str, path: str) -> bool:
    """Returns whether a route asks nobody who they are."""
    return any(m == method and p.match(path) for m, p in _OPEN)


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Whoever sent a request: whose adapters they mean, and whether they see all tenants'.

    Args:
        name: of their token, for the log.
    """

    tenant: str
    sees_all: bool
    name: str = "loopback"
    roles: frozenset[Role] = _ALL

    def may(self, method: str, path: str) -> bool:
        """Returns whether a token of these roles may ask for this."""
        return bool(self.roles & (_roles_for(method, path) or frozenset()))

    def own(self, name: str) -> str:
        """Returns the state's name for an adapter that this caller names.

        Raises:
            AdapterNotFound: the name is another tenant's.
        """
        if self.tenant == EVERY_TENANT:
            return name
        if ":" in name:
            raise AdapterNotFound(f"no adapter is named {name[:80]!r}", mend="see GET /adapters")
        return qualified(name, tenant=self.tenant)

    def label(self, name: str) -> str:
        """Returns an adapter's name as this caller says it."""
        return name if self.tenant == EVERY_TENANT else name.removeprefix(f"{self.tenant}:")

    def sees(self, tenant: str) -> bool:
        """Returns whether what belongs to `tenant` is shown to this caller."""
        return self.sees_all or tenant == self.tenant


# Without tokens, whoever reaches the loopback is everybody.
ANYBODY = Caller(tenant=DEFAULT_TENANT, sees_all=True)


class Access:
    """Lets a request in or says why not, before anything of its body is read."""

    def __init__(
        self, tokens: Tokens | None, *, sessions: Sessions, now_s: Callable[[], float]
    ) -> None:
        """Takes the state's tokens; None, for a server without a socket, lets everybody in."""
        self._tokens = tokens
        self._sessions = sessions
        self._limits = RateLimits(now_s=now_s)

    def admit(
        self, method: str, path: str, headers: Mapping[str, str], *, again: bool = False
    ) -> Caller:
        """Returns who is asking.

        Args:
            again: the same request, once more after its body came; it counts once.

        Raises:
            Unauthenticated: no token, or none that counts.
            RateLimited: too much at once.
            RoleMissing: the route is for other roles.
            NotFound: the table has no such route.
            DataError: without tokens, a page of the web asks through somebody's browser.
        """
        if self._tokens is None or is_open(method, path):
            return ANYBODY
        if not self._tokens.demanded:
            _check_local(headers)
            check_origin(method, headers)
            return ANYBODY
        row = self._row(self._tokens, method, path, headers)
        if not again:
            self._count(row, path)
        roles = frozenset(Role(role) for role in row.roles)
        allowed = _roles_for(method, path)
        if allowed is None:
            raise NotFound(f"nothing at {method} {path[:100]}", mend="see the API reference")
        if not roles & allowed:
            raise RoleMissing(
                f"{method} {path[:100]} is for {' or '.join(sorted(allowed))}, "
                f"this token is for {' and '.join(sorted(roles))}",
                mend="use a token of that role",
            )
        return _caller(row, roles)

    def _count(self, row: TokenRow, path: str) -> None:
        if path == "/kill":  # whoever has asked for too much may stop everything all the same
            self._limits.take(f"{row.token_id} {path}", per_minute=KILLS_PER_MINUTE)
        else:
            self._limits.take(row.token_id, per_minute=row.requests_per_minute)

    def _row(self, tokens: Tokens, method: str, path: str, headers: Mapping[str, str]) -> TokenRow:
        session = None
        if "authorization" not in headers:
            session = cookie_parser(headers.get("cookie", "")).get(COOKIE)
        if not session:
            return tokens.find(_bearer(headers))
        row = self._sessions.find(session)
        if method not in _READING:
            # A browser adds the cookie to what any page makes it send.
            check_origin(method, headers)
            self._sessions.check_page(session, headers.get(PAGE_HEADER, ""))
            if not any(m == method and p.match(path) for m, p in _COMPILED_OF_PAGES):
                raise PageForged("no page asks for this, so a browser's session is not enough",
                                 mend="send a token")  # fmt: skip
        return row


def need_all(caller: Caller) -> None:
    """Refuses whoever may not see what belongs to every tenant.

    Raises:
        RoleMissing: the token is one tenant's.
    """
    if not caller.sees_all:
        raise RoleMissing(
            "this shows every tenant's names", mend="use a token for all tenants (--tenant '*')"
        )


def caller_of(request: Request) -> Caller:
    """Returns who sent this request, as the guard found out."""
    caller: Caller = request.state.caller
    return caller


Asking = Annotated[Caller, Depends(caller_of)]


def _caller(row: TokenRow, roles: frozenset[Role]) -> Caller:
    sees_all = row.tenant == EVERY_TENANT or Role.OPERATOR in roles
    return Caller(tenant=row.tenant, sees_all=sees_all, name=row.name, roles=roles)


def _roles_for(method: str, path: str) -> frozenset[Role] | None:
    return next((r for m, p, r in _COMPILED if m == method and p.match(path)), None)


def _bearer(headers: Mapping[str, str]) -> str:
    kind, _, token = headers.get("authorization", "").partition(" ")
    if kind.lower() != "bearer" or not token.strip():
        raise Unauthenticated(
            "this server asks for a bearer token",
            mend="set CAMBIUM_TOKEN, or send Authorization: Bearer TOKEN",
        )
    return token.strip()


def _check_local(headers: Mapping[str, str]) -> None:
    """Refuses what a stranger's page has a browser send: it names another host than this one."""
    # A picture or a stream that another site's page asks for carries no origin.
    crosses = headers.get("sec-fetch-site") == "cross-site"
    if crosses and headers.get("sec-fetch-mode") != "navigate":
        raise DataError("a page of another site asks through a browser", mend="ask from here")
    named = [f"//{headers.get('host', '')}", headers.get("origin", "")]
    for address in filter(None, named):
        try:
            host = urlsplit(address).hostname
        except ValueError:
            host = None
        if host not in LOOPBACK:
            raise DataError(
                f"a server without tokens answers to this machine alone, not to {address[:80]!r}",
                mend="ask 127.0.0.1, or make tokens with `cambium token new`",
            )


def check_origin(method: str, headers: Mapping[str, str]) -> None:
    """Refuses a change that a page of another site, or of another port, asks for in a browser.

    Raises:
        PageForged: the browser says so.
    """
    origin = headers.get("origin")
    if method in _READING or origin is None:
        return
    # A server with tokens may stand behind a proxy that speaks TLS: only the host is compared.
    if origin.partition("://")[2] != headers.get("host"):
        raise PageForged(f"a page of {origin[:80]!r} asks for a change through a browser",
                         mend="act on this server's own pages")  # fmt: skip

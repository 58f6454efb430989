"""Bearer tokens: made once, shown once, kept as hashes."""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from cambium.core.errors import DataError, IllegalTransition
from cambium.serve.errors import NotFound, Unauthenticated
from cambium.serve.names import ADAPTER_NAME
from cambium.serve.store.records import TokenRow
from cambium.serve.store.state import State

# The tenant of reviewers and operators who look after all tenants.
EVERY_TENANT = "*"
PREFIX = "cambium"
DEFAULT_PER_MINUTE = 6000
MAX_PER_MINUTE = 1_000_000
MAX_DAYS = 3650
# Other processes on the same state make and revoke tokens too.
REFRESH_MS = 1000
_DAY_MS = 24 * 3600 * 1000


class Role(StrEnum):
    """What a token is for; a token can have several."""

    CLIENT = "client"
    LEARNER = "learner"
    REVIEWER = "reviewer"
    OPERATOR = "operator"


@dataclass(frozen=True, kw_only=True)
class TokenOrder:
    """What a new token is to be.

    Args:
        tenant: whose adapters it means; `*` for reviewers and operators of all tenants.
        days: how long it counts; None for good.
    """

    name: str
    tenant: str
    roles: Sequence[str]
    requests_per_minute: int = DEFAULT_PER_MINUTE
    days: int | None = None

    def check(self) -> None:
        """Raises `DataError` for what no token can be."""
        if not ADAPTER_NAME.fullmatch(self.name):
            raise DataError(f"{self.name[:80]!r} cannot name a token",
                            mend="use letters, digits, '.', '_', '-', at most 64")  # fmt: skip
        if self.tenant != EVERY_TENANT and not ADAPTER_NAME.fullmatch(self.tenant):
            raise DataError(f"{self.tenant[:80]!r} cannot name a tenant",
                            mend="use letters, digits, '.', '_', '-', at most 64")  # fmt: skip
        if not self.roles or not set(self.roles) <= set(Role):
            raise DataError(
                "a token needs roles that exist", mend=f"choose among {', '.join(Role)}"
            )
        if self.tenant == EVERY_TENANT and set(self.roles) & {Role.CLIENT, Role.LEARNER}:
            raise DataError("whoever asks or teaches does it for one tenant",
                            mend="name the tenant")  # fmt: skip
        for what, value, highest in (
            ("requests_per_minute", self.requests_per_minute, MAX_PER_MINUTE),
            ("days", 1 if self.days is None else self.days, MAX_DAYS),
        ):
            if not 1 <= value <= highest:
                raise DataError(f"{what} is outside 1..{highest}", mend="choose a number in it")


class Tokens:
    """The tokens of one state. Once there was one, every request needs one, for good.

    Where others share the state, `follow` hears what they do; no request waits for the database,
    and while that is gone, tokens stand as they stood.
    """

    def __init__(self, state: State, *, now_ms: Callable[[], int]) -> None:
        self._state = state
        self._now_ms = now_ms
        self._rows: dict[str, TokenRow] = {}
        self._read_at = 0
        self._lock = threading.Lock()
        self._refresh()

    @property
    def demanded(self) -> bool:
        """Returns whether requests need a token: also after the last one was revoked."""
        self._refresh_if_old()
        return bool(self._rows)

    def find(self, token: str) -> TokenRow:
        """Returns the standing of a token.

        Raises:
            Unauthenticated: unknown, revoked or expired, without saying which.
        """
        self._refresh_if_old()
        return self._checked(self._rows.get(_hash(token)))

    def standing(self, token_id: str) -> TokenRow:
        """Returns the standing of the token with this id, for whoever proved to hold it before.

        Raises:
            Unauthenticated: as `find`.
        """
        self._refresh_if_old()
        return self._checked(next((r for r in self._rows.values() if r.token_id == token_id), None))

    def _checked(self, row: TokenRow | None) -> TokenRow:
        if row is None or row.revoked_at is not None or not self._is_in_time(row):
            raise Unauthenticated(
                "this token does not count: unknown, revoked or expired",
                mend="ask an operator for another",
            )
        return row

    def make(self, order: TokenOrder) -> tuple[TokenRow, str]:
        """Makes a token; nobody can read it out again.

        Raises:
            DataError: no token can be that.
            IllegalTransition: the first one would leave nobody to make the second.
        """
        order.check()
        token_id, now = secrets.token_hex(6), self._now_ms()
        token = f"{PREFIX}_{token_id}_{secrets.token_urlsafe(32)}"
        row = TokenRow(
            token_id=token_id,
            hash=_hash(token),
            name=order.name,
            tenant=order.tenant,
            roles=tuple(sorted(set(order.roles))),
            requests_per_minute=order.requests_per_minute,
            created_at=now,
            expires_at=None if order.days is None else now + order.days * _DAY_MS,
        )
        with self._state.transaction() as tx:
            if not tx.list_tokens() and Role.OPERATOR not in row.roles:
                raise IllegalTransition(
                    "with the first token every request needs one, and nobody could make another",
                    mend="make an operator's token first",
                )
            tx.add_token(row)
            tx.audit("token.made", at=now, body={
                "token_id": token_id, "name": row.name, "tenant": row.tenant,
                "roles": list(row.roles), "expires_at": row.expires_at})  # fmt: skip
        self._refresh()
        return row, token

    def list(self) -> list[TokenRow]:
        """Returns all tokens' standings, oldest first."""
        with self._state.read() as tx:
            return tx.list_tokens()

    def revoke(self, token_id: str) -> None:
        """Takes a token out of service, at once here and within a second elsewhere.

        Raises:
            NotFound: no token of this id counts.
        """
        now = self._now_ms()
        with self._state.transaction() as tx:
            if not tx.revoke_token(token_id, at=now):
                raise NotFound(f"no token {token_id[:40]!r} counts", mend="see GET /tokens")
            tx.audit("token.revoked", at=now, body={"token_id": token_id})
        self._refresh()

    def follow(self) -> None:
        """Reads what other processes of the state have made and revoked."""
        self._refresh()

    def _is_in_time(self, row: TokenRow) -> bool:
        return row.expires_at is None or self._now_ms() < row.expires_at

    def _refresh_if_old(self) -> None:
        if self._state.is_shared:
            return
        if not 0 <= self._now_ms() - self._read_at < REFRESH_MS:
            self._refresh()

    def _refresh(self) -> None:
        with self._lock:
            read_at = self._now_ms()
            # By hash: a dictionary compares it in a time that says nothing of the token.
            self._rows = {row.hash: row for row in self.list()}
            self._read_at = read_at


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()

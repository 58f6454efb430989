"""What a browser keeps of a token: proof that it once had it, for twelve hours.

A cookie goes to every port of a host, and over plain HTTP to whoever listens. So it is not the
token: it names it, says until when, and is sealed with a secret of this process. A restart, or the
token's revocation, ends every session. A browser also sends it with whatever another site's page
asks for, so that alone it counts for reading; for more, the page has to say what stands in it.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable

from cambium.serve.errors import PageForged, Unauthenticated
from cambium.serve.store.records import TokenRow
from cambium.serve.tokens import Tokens

COOKIE = "cambium_session"
SESSION_S = 12 * 3600
# The header in which this server's own pages say what no other site can read in them.
PAGE_HEADER = "x-cambium-page"


class Sessions:
    """Opens sessions for tokens and finds the token of a session."""

    def __init__(self, tokens: Tokens, *, now_ms: Callable[[], int]) -> None:
        self._tokens = tokens
        self._now_ms = now_ms
        self._secret = secrets.token_bytes(32)

    def open(self, token: str) -> str:
        """Returns a cookie's value for a token.

        Raises:
            Unauthenticated: the token does not count.
        """
        row = self._tokens.find(token)
        until = self._now_ms() // 1000 + SESSION_S
        return f"{row.token_id}.{until}.{self._seal(row.token_id, until)}"

    def find(self, cookie: str) -> TokenRow:
        """Returns the token of a session.

        Raises:
            Unauthenticated: it is no session of this process, it is over, or its token is.
        """
        token_id, _, rest = cookie.partition(".")
        said, _, seal = rest.partition(".")
        until = int(said) if said.isascii() and said.isdigit() and len(said) < 16 else 0
        sealed = self._seal(token_id, until)
        if not hmac.compare_digest(seal.encode(), sealed.encode()) or self._is_over(until):
            raise Unauthenticated("this session does not count", mend="sign in on /sign-in")
        return self._tokens.standing(token_id)

    def page_secret(self, cookie: str) -> str:
        """Returns what stands in the pages of a session, by which they can be told from others."""
        return hmac.new(self._secret, f"page {cookie}".encode(), hashlib.sha256).hexdigest()

    def check_page(self, cookie: str, said: str) -> None:
        """Returns when a change is asked for by this session's own pages.

        Raises:
            PageForged: another page may have sent it.
        """
        if not hmac.compare_digest(said.encode(), self.page_secret(cookie).encode()):
            raise PageForged("a page of another site, or of another session, asks for a change",
                             mend="load the page again, and act there")  # fmt: skip

    def _is_over(self, until: int) -> bool:
        return self._now_ms() // 1000 >= until

    def _seal(self, token_id: str, until: int) -> str:
        said = f"{token_id}.{until}".encode()
        return hmac.new(self._secret, said, hashlib.sha256).hexdigest()

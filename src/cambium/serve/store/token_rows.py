"""Rows of bearer tokens."""

from __future__ import annotations

from sqlalchemy import update

from cambium.serve.store.records import TokenRow
from cambium.serve.store.rows import Rows, columns
from cambium.serve.store.schema import Token

_TOKENS = columns(Token, TokenRow)


class TokenRows(Rows):
    """Who may send requests."""

    def add_token(self, row: TokenRow) -> None:
        """Keeps a new token's hash.

        Raises:
            DataError: the id or the hash is there already.
        """
        self._add(Token, row)

    def list_tokens(self) -> list[TokenRow]:
        """Returns all tokens, revoked and expired ones too, oldest first."""
        return self._all(TokenRow, _TOKENS.order_by(Token.created_at, Token.token_id))

    def revoke_token(self, token_id: str, *, at: int) -> bool:
        """Marks a token as revoked from `at`; returns False if none of this id counted."""
        statement = update(Token).where(Token.token_id == token_id, Token.revoked_at.is_(None))
        return self._connection.execute(statement.values(revoked_at=at)).rowcount > 0

"""The one place that changes what is served; it takes only what `lifecycle` constructs.

Bytes are loaded and hashed before anything is committed, the revision is committed before it is
served, and what is served is hashed again from memory. Cut off in between, the next start
serves the committed revision.
"""

from __future__ import annotations

from collections.abc import Sequence

from cambium.core.errors import ConfigError, DigestMismatch
from cambium.core.nouns import Revision
from cambium.lifecycle.publish import PublishOrder, authorise_genesis
from cambium.models.base import BaseModel
from cambium.models.lora import to_bytes
from cambium.serve.bank import Bank, load_bank
from cambium.serve.identity import Identity
from cambium.serve.revision_records import signed_row, verified_revision
from cambium.serve.store.records import RevisionRow
from cambium.serve.store.state import State
from cambium.serve.store.transaction import Transaction
from cambium.trust.keys import SigningKey
from cambium.trust.policy import Policy


class Published:
    """What is served now."""

    def __init__(self, bank: Bank, *, state: State, base: BaseModel, identity: Identity) -> None:
        self._bank = bank
        self._state = state
        self._base = base
        self._identity = identity

    @property
    def bank(self) -> Bank:
        """Returns the bank of the served revision; requests keep the one they started with."""
        return self._bank

    def prepare(self, order: PublishOrder) -> Bank:
        """Returns the ordered bank, loaded and hashed; nothing changes yet.

        Raises:
            DigestMismatch: what is loaded is not what was signed.
        """
        bank = load_bank(order.revision, self._state, self._base)
        self._read_back(bank)
        return bank

    def commit(self, order: PublishOrder, tx: Transaction, *, at: int) -> RevisionRow:
        """Writes the ordered revision, signed by the server, into a transaction."""
        row = signed_row(order.revision, self._identity.key_in(tx), at=at)
        tx.add_revision(row)
        return row

    def serve(self, order: PublishOrder, bank: Bank) -> dict[str, str]:
        """Serves a prepared bank from now on; returns the digests read back, by domain."""
        if bank.revision.digest != order.revision.digest:
            raise DigestMismatch(
                "the prepared bank is not the ordered one", mend="prepare it again"
            )
        self._bank = bank
        return self._read_back(self._bank)

    def follow(self, tx: Transaction) -> None:
        """Serves the newest revision where another process made it, verified and read back.

        Raises:
            SignatureInvalid, DigestMismatch, StateCorrupt: it does not verify, or does not go back
                to what is served; that is served on.
        """
        served, head = self._bank.revision, tx.head_revision()
        if head is None or head.digest == served.digest:
            return
        revisions = _verified_line(tx.list_revisions(), self._identity.key_in(tx))
        if served.digest not in {revision.digest for revision in revisions}:
            raise DigestMismatch(f"the state has no revision {served.number} that is served here",
                                 mend="restore the state from a backup")  # fmt: skip
        bank = load_bank(revisions[-1], self._state, self._base)
        self._read_back(bank)
        self._bank = bank

    def _read_back(self, bank: Bank) -> dict[str, str]:
        digests = {}
        for domain, served in bank.adapters.items():
            loaded = to_bytes(served.lora, fan_in_fan_out=self._base.transposed).digest
            if loaded != served.ref.digest:
                raise DigestMismatch(
                    f"{domain!r} is loaded as {loaded}, signed as {served.ref.digest}",
                    mend="restore the state from a backup",
                )
            digests[domain] = loaded
        return digests


def open_bank(
    state: State, base: BaseModel, *, identity: Identity, policy: Policy | None, now_ms: int
) -> Published:
    """Returns what the state's newest revision serves; a fresh state gets its first revision.

    Every revision is verified, not only the newest: a rollback may return to any of them, and an
    ephemeral adapter may stand on one.

    Raises:
        ConfigError: the state was made on another base.
        SignatureInvalid, DigestMismatch, StateCorrupt: a revision or its bytes are not what was
            signed.
    """
    with state.read() as tx:
        rows = tx.list_revisions()
    if not rows:
        order = authorise_genesis(base_digest=base.digest, policy=policy, now=now_ms // 1000)
        with state.transaction() as tx:
            if tx.head_revision() is None:  # no other process was first
                row = signed_row(order.revision, identity.key_in(tx), at=now_ms)
                tx.add_revision(row)
                body: dict[str, object] = {
                    "revision": row.number,
                    "digest": row.digest,
                    "base": base.digest,
                }
                tx.audit("revision.genesis", at=now_ms, body=body)
            rows = tx.list_revisions()
    revision = _verified_line(rows, identity.key)[-1]
    if revision.base_digest != base.digest:
        raise ConfigError(
            f"this state was made on base {revision.base_digest}, not {base.digest}",
            mend="start with the same --model, or on another --state",
        )
    return Published(load_bank(revision, state, base), state=state, base=base, identity=identity)


def _verified_line(rows: Sequence[RevisionRow], key: SigningKey) -> list[Revision]:
    """Returns the stored revisions, each verified and each on the one before."""
    revisions = [verified_revision(row, key.public_key) for row in rows]
    parents = [None, *(revision.digest for revision in revisions)]
    for revision, parent in zip(revisions, parents, strict=False):
        if revision.parent != parent:
            raise DigestMismatch(f"revision {revision.number} does not follow the one before",
                                 mend="restore the state from a backup")  # fmt: skip
    return revisions

"""The signed head of the audit log: never over a history that forgets what was signed before."""

from __future__ import annotations

from itertools import pairwise

from cambium.core.errors import AuditBroken
from cambium.serve.store.transaction import Transaction
from cambium.trust.audit import SignedHead, next_entry, sign_head
from cambium.trust.keys import SigningKey


def sign_newest(tx: Transaction, key: SigningKey) -> SignedHead:
    """Signs and keeps the newest entry, which must extend the head that was signed before.

    Raises:
        AuditBroken: the log was cut, or rewritten from the last signed entry on.
    """
    before = tx.latest_head()
    entries = tx.audit_entries(since=before.seq if before else 1)
    if not entries:
        raise _broken(before.seq if before else 1, "the entry is missing")
    # Ed25519 signs the same bytes the same way, so signing again verifies.
    if before is not None and sign_head(key, entries[0]) != before:
        raise _broken(before.seq, "it is not the entry that was signed")
    for last, entry in pairwise(entries):
        if next_entry(last, at=entry.at, kind=entry.kind, body=entry.body) != entry:
            raise _broken(entry.seq, "it does not follow from the entry before")
    head = sign_head(key, entries[-1])
    tx.put_head(head)
    return head


def _broken(seq: int, why: str) -> AuditBroken:
    return AuditBroken(
        f"the audit log breaks at entry {seq}: {why}",
        mend="stop, keep a copy, compare with a backup or a witness",
        detail={"seq": seq},
    )

"""The audit log as a hash chain with a signed head: pure values, stored by somebody else."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cambium.core.canonical import canonical_json, digest_json
from cambium.core.errors import AuditBroken, CambiumError
from cambium.trust.keys import PublicKey, SigningKey

GENESIS = "sha256:" + "0" * 64


@dataclass(frozen=True, kw_only=True)
class AuditEntry:
    """One thing that happened.

    Args:
        seq: 1 for the first, then one more each.
        at: milliseconds since 1970, UTC, as the server's clock said.
        prev: the hash of the entry before; `GENESIS` for the first.
        hash: digest of the canonical JSON of all the others.
    """

    seq: int
    at: int
    kind: str
    body: dict[str, object]
    prev: str
    hash: str


@dataclass(frozen=True, kw_only=True)
class SignedHead:
    """The server's signature over the log's length and last hash."""

    seq: int
    hash: str
    key_id: str
    signature: str


def next_entry(
    prev: AuditEntry | None, *, at: int, kind: str, body: dict[str, object]
) -> AuditEntry:
    """Returns the entry that follows `prev`, or the first one.

    Raises:
        DataError: `body` is not plain JSON.
    """
    seq = prev.seq + 1 if prev else 1
    before = prev.hash if prev else GENESIS
    hash_ = _hash(seq=seq, at=at, kind=kind, body=body, prev=before)
    return AuditEntry(seq=seq, at=at, kind=kind, body=body, prev=before, hash=hash_)


def sign_head(key: SigningKey, entry: AuditEntry) -> SignedHead:
    """Returns the head that vouches for `entry` and so for everything before it."""
    signature = key.sign(_head_bytes(entry.seq, entry.hash))
    return SignedHead(seq=entry.seq, hash=entry.hash, key_id=key.key_id, signature=signature)


def verify_chain(
    entries: Iterable[AuditEntry], *, head: SignedHead | None, server_public: PublicKey
) -> int:
    """Returns how many entries were verified, from the first to the last.

    The head must be of the last entry: an entry cut off or added after signing is found. Without
    a head (`None`) only the chain is checked, which its owner can rewrite. Whoever holds the
    server's key can rewrite both; only a head kept elsewhere shows that.

    Raises:
        AuditBroken: names the first sequence number that does not hold (`detail["seq"]`).
    """
    last: AuditEntry | None = None
    for entry in entries:
        expected = last.seq + 1 if last else 1
        if entry.seq != expected:
            raise _broken(expected, f"found number {entry.seq} instead")
        if entry.prev != (last.hash if last else GENESIS):
            raise _broken(expected, "it does not follow the entry before")
        if entry.hash != _recomputed(entry):
            raise _broken(expected, "its content does not hash to its name")
        last = entry
    if head is not None:
        _check_head(last, head, server_public)
    return last.seq if last else 0


def _check_head(last: AuditEntry | None, head: SignedHead, server_public: PublicKey) -> None:
    if head.key_id != server_public.key_id or not server_public.verify(
        _head_bytes(head.seq, head.hash), head.signature
    ):
        raise _broken(head.seq, "the head's signature does not verify")
    count = last.seq if last else 0
    if count != head.seq:
        raise _broken(min(count, head.seq) + 1, f"{count} entries, but {head.seq} were signed")
    if last is not None and last.hash != head.hash:
        raise _broken(head.seq, "another history was signed")


def _head_bytes(seq: int, hash_: str) -> bytes:
    return canonical_json({"type": "cambium/audit-head/v1", "seq": seq, "hash": hash_})


def _hash(*, seq: int, at: int, kind: str, body: dict[str, object], prev: str) -> str:
    record = {
        "type": "cambium/audit/v1",
        "seq": seq,
        "at": at,
        "kind": kind,
        "body": body,
        "prev": prev,
    }
    return digest_json(record)


def _recomputed(entry: AuditEntry) -> str | None:
    try:
        return _hash(seq=entry.seq, at=entry.at, kind=entry.kind, body=entry.body, prev=entry.prev)
    except CambiumError:
        return None


def _broken(seq: int, why: str) -> AuditBroken:
    return AuditBroken(
        f"the audit log breaks at entry {seq}: {why}",
        mend="stop, keep a copy, compare with a backup or a witness",
        detail={"seq": seq},
    )

"""The audit log: entries as leaves of a Merkle tree, and the server's signature over its root."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cambium.core.canonical import canonical_json, is_digest
from cambium.core.errors import AuditBroken, CambiumError
from cambium.trust.keys import PublicKey, SigningKey
from cambium.trust.merkle import GrowingTree, is_consistent, leaf_hash

_PREFIX = "sha256:"
# Each lane of the log is a tree of its own, and what is signed over one is nothing in the other.
LIFECYCLE, REQUESTS = "lifecycle", "requests"


@dataclass(frozen=True, kw_only=True)
class AuditEntry:
    """One thing that happened.

    Args:
        seq: 1 for the first, then one more each; its leaf's index is one less.
        at: milliseconds since 1970, UTC, as the server's clock said.
        hash: of its leaf, over the canonical JSON of all the others.
    """

    seq: int
    at: int
    kind: str
    body: dict[str, object]
    hash: str


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The server's signature over how many entries there are and the root of their tree."""

    size: int
    root: str
    key_id: str
    signature: str


def make_entry(seq: int, *, at: int, kind: str, body: dict[str, object]) -> AuditEntry:
    """Returns the entry with its leaf's hash.

    Raises:
        DataError: `body` is not plain JSON.
    """
    record = {"type": "cambium/audit/v2", "seq": seq, "at": at, "kind": kind, "body": body}
    return AuditEntry(seq=seq, at=at, kind=kind, body=body,
                      hash=to_text(leaf_hash(canonical_json(record))))  # fmt: skip


def sign_checkpoint(key: SigningKey, size: int, root: bytes, lane: str = LIFECYCLE) -> Checkpoint:
    """Returns the checkpoint that vouches for the first `size` entries, and for no others."""
    text = to_text(root)
    signature = key.sign(_signed_bytes(size, text, lane))
    return Checkpoint(size=size, root=text, key_id=key.key_id, signature=signature)


def check_checkpoint(signed: Checkpoint, server_public: PublicKey, lane: str = LIFECYCLE) -> None:
    """Returns when the server's key signed exactly this checkpoint of this lane.

    Raises:
        AuditBroken: it did not.
    """
    data = _signed_bytes(signed.size, signed.root, lane)
    if signed.key_id != server_public.key_id or not server_public.verify(data, signed.signature):
        raise log_broken(signed.size, "the checkpoint's signature does not verify")


def verify_log(
    entries: Iterable[AuditEntry], *, checkpoint: Checkpoint, server_public: PublicKey
) -> int:
    """Returns how many entries were verified: all from the first, as many as were signed.

    Whoever holds the server's key can sign another history; only a checkpoint kept elsewhere
    shows that.

    Raises:
        AuditBroken: names the first sequence number that does not hold (`detail["seq"]`); for a
            history whose every entry holds by itself, the number of entries that were signed.
    """
    check_checkpoint(checkpoint, server_public)
    tree = GrowingTree()
    for entry in entries:
        grow(tree, entry)
    if tree.size != checkpoint.size:
        first = min(tree.size, checkpoint.size) + 1
        raise log_broken(first, f"{tree.size} entries, but {checkpoint.size} were signed")
    if to_text(tree.root()) != checkpoint.root:
        raise log_broken(tree.size, "another history was signed")
    return tree.size


def grow(tree: GrowingTree, entry: AuditEntry) -> None:
    """Adds an entry to a log's tree if it is the next one and hashes to what it says.

    Raises:
        AuditBroken: it is another one, or was changed.
    """
    seq = tree.size + 1
    if entry.seq != seq:
        raise log_broken(seq, f"found number {entry.seq} instead")
    try:
        made = make_entry(entry.seq, at=entry.at, kind=entry.kind, body=entry.body)
    except CambiumError:
        made = None
    if made != entry:
        raise log_broken(seq, "its content does not hash to its name")
    tree.append(to_bytes(entry.hash))


def check_grown(
    kept: Checkpoint, now: Checkpoint, proof: Sequence[str], server_public: PublicKey,
    lane: str = LIFECYCLE, *, since: PublicKey | None = None) -> None:  # fmt: skip
    """Returns when the log that `now` signs begins with the one that `kept` signs.

    Args:
        since: the key that signed `now`, where another one than that of `kept` is in office.

    Raises:
        AuditBroken: another key signed, the log is shorter than it was, or the proof does not hold.
    """
    check_checkpoint(kept, server_public, lane)
    check_checkpoint(now, since or server_public, lane)
    if now.size < kept.size:
        raise log_broken(now.size + 1, f"{kept.size} entries were signed before")
    steps = [to_bytes(step) for step in proof]
    if not is_consistent(kept.size, now.size, steps, to_bytes(kept.root), to_bytes(now.root)):
        raise log_broken(kept.size, "what was signed before is not how it begins now")


def log_broken(seq: int, why: str) -> AuditBroken:
    """Returns the error of a log that does not hold from entry `seq` on."""
    return AuditBroken(
        f"the audit log breaks at entry {seq}: {why}",
        mend="stop, keep a copy, compare with a backup or a witness",
        detail={"seq": seq},
    )


def to_text(hash_: bytes) -> str:
    """Returns `sha256:` and 64 hex digits."""
    return _PREFIX + hash_.hex()


def to_bytes(text: str) -> bytes:
    """Returns the bytes that `to_text` wrote.

    Raises:
        AuditBroken: it is something else.
    """
    if not is_digest(text):
        raise log_broken(0, f"{text[:80]!r} is not a hash")
    return bytes.fromhex(text.removeprefix(_PREFIX))


def _signed_bytes(size: int, root: str, lane: str) -> bytes:
    kind = "cambium/checkpoint/v1" if lane == LIFECYCLE else f"cambium/checkpoint-{lane}/v1"
    return canonical_json({"type": kind, "size": size, "root": root})

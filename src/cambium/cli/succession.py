"""Which key is the server's now: the one it had, or one that a kill put in its place."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from cambium.cli.client import Client
from cambium.cli.failures import NO, WRONG_CALL, CommandFailed

if TYPE_CHECKING:
    from cambium.trust.audit import AuditEntry, Checkpoint
    from cambium.trust.keys import PublicKey

KILLED = "system.killed"


def check_succession(
    last: Checkpoint, killed: AuditEntry, proof: Sequence[str], server_public: PublicKey
) -> PublicKey:
    """Returns the key that took the place of `server_public`, by what that signed last.

    Args:
        last: the checkpoint that ends with the entry of a kill.
        killed: that entry, which names the next key; `proof` that it is under the checkpoint.

    Raises:
        AuditBroken: it is no such checkpoint, entry or proof.
        SignatureInvalid: what it names is no key.
    """
    from cambium.trust.audit import check_checkpoint, log_broken, make_entry, to_bytes
    from cambium.trust.keys import PublicKey
    from cambium.trust.merkle import is_included

    check_checkpoint(last, server_public)
    same = make_entry(killed.seq, at=killed.at, kind=killed.kind, body=killed.body) == killed
    steps, leaf, root = [to_bytes(s) for s in proof], to_bytes(killed.hash), to_bytes(last.root)
    held = same and is_included(leaf, killed.seq - 1, last.size, steps, root)
    if not held or (killed.kind, killed.seq) != (KILLED, last.size):
        raise log_broken(last.size, "the server's key changed without a kill that names the next")
    return PublicKey(raw=str(killed.body.get("server")))


def succession(client: Client, since: PublicKey, now: str) -> list[tuple[Checkpoint, PublicKey]]:
    """Returns each change of the server's key since one: what it signed last, and the next key.

    Args:
        now: id of the key in office; where it is the same, nothing is asked.

    Raises:
        AuditBroken, SignatureInvalid: a change is not proved.
    """
    from cambium.cli.record import built
    from cambium.trust.audit import AuditEntry, Checkpoint

    found: list[tuple[Checkpoint, PublicKey]] = []
    try:
        rows = client.rows("/audit/successions", "successions") if since.key_id != now else []
    except CommandFailed as error:
        if error.status != WRONG_CALL:
            raise
        rows = []  # an older server has no such route: then no change is proved
    for row in rows:
        last, killed = built(Checkpoint, row["checkpoint"]), built(AuditEntry, row["entry"])
        if last.key_id == since.key_id:
            since = check_succession(last, killed, row["proof"], since)
            found.append((last, since))
    return found


class KnownKey:
    """Follows, entry by entry of a log, which key has to have signed it."""

    def __init__(self) -> None:
        self.key_id = ""

    def watch(self, entries: Iterable[AuditEntry]) -> Iterable[AuditEntry]:
        """Yields the entries on, having read in them who the server's key is."""
        from cambium.trust.keys import PublicKey

        for entry in entries:
            if entry.kind == "key.enrolled" and entry.body.get("role") == "server":
                self.key_id = str(entry.body.get("key_id"))
            if entry.kind == KILLED and "server" in entry.body:
                self.key_id = PublicKey(raw=str(entry.body["server"])).key_id
            yield entry

    def check(self, key_id: str) -> None:
        """Refuses a log that another key signed than the one which the log names last.

        Raises:
            CommandFailed: it is another one.
        """
        if self.key_id not in ("", key_id):
            line = f"the log names {self.key_id} as the server's key, and {key_id} signed it"
            raise CommandFailed(f"{line}: do not trust this log", status=NO)

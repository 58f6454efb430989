"""Rows of trust: policies, keys, the state's version, and the audit log."""

from __future__ import annotations

from sqlalchemy import delete, func, select, update

from cambium.core.errors import KeyUnknown
from cambium.serve.errors import PolicyMissing, StateCorrupt
from cambium.serve.store.records import KeyRow, PolicyRow
from cambium.serve.store.rows import Rows, columns
from cambium.serve.store.schema import Audit, AuditNode, Key, LatestCheckpoint, Meta, Policy
from cambium.serve.store.tree import Tree
from cambium.trust.audit import AuditEntry, Checkpoint, make_entry, to_bytes

_STATE_VERSION = "state_version"
_POLICIES = columns(Policy, PolicyRow)
_KEYS = columns(Key, KeyRow)
_AUDIT = columns(Audit, AuditEntry)


class LedgerRows(Rows):
    """What decides and what was decided."""

    def set_policy(self, row: PolicyRow) -> None:
        """Puts a policy in force in place of the one before, which stays on record."""
        self._connection.execute(update(Policy).values(active=None))
        self._put(Policy, row, active=True)

    def active_policy(self) -> PolicyRow | None:
        """Returns the policy in force, or None before the first is signed."""
        return self._first(PolicyRow, _POLICIES.where(Policy.active.is_(True)))

    def list_policies(self) -> list[PolicyRow]:
        """Returns the policies that are or were in force, oldest first."""
        return self._all(PolicyRow, _POLICIES.order_by(Policy.created_at, Policy.digest))

    def get_policy(self, digest: str) -> PolicyRow:
        """Returns a policy that is or was in force.

        Raises:
            PolicyMissing: none has this digest.
        """
        row = self._first(PolicyRow, _POLICIES.where(Policy.digest == digest))
        if row is None:
            raise PolicyMissing(f"no policy has the digest {digest!r:.100}", mend="sign it first")
        return row

    def put_key(self, row: KeyRow) -> None:
        """Enrols a key, or replaces the row of its id.

        Raises:
            DataError: the same key bytes are enrolled under another id.
        """
        self._put(Key, row)

    def get_key(self, key_id: str) -> KeyRow:
        """Returns an enrolled key, revoked or not.

        Raises:
            KeyUnknown: none has this id.
        """
        row = self._first(KeyRow, _KEYS.where(Key.key_id == key_id))
        if row is None:
            raise KeyUnknown(f"no key has the id {key_id!r:.100}", mend="enrol the key first")
        return row

    def list_keys(self, *, role: str | None = None) -> list[KeyRow]:
        """Returns the keys, revoked ones too, oldest first, of one role if given."""
        statement = _KEYS.order_by(Key.enrolled_at, Key.key_id)
        return self._all(KeyRow, statement if role is None else statement.where(Key.role == role))

    def revoke_key(self, key_id: str, *, at: int) -> None:
        """Marks a key as revoked from `at`; an earlier revocation stands.

        Raises:
            KeyUnknown: none has this id.
        """
        if self.get_key(key_id).revoked_at is None:
            revoked = update(Key).where(Key.key_id == key_id).values(revoked_at=at)
            self._connection.execute(revoked)

    def get_meta(self, key: str) -> str | None:
        """Returns a single value, or None."""
        return self._connection.execute(select(Meta.value).where(Meta.key == key)).scalar()

    def set_meta(self, key: str, *, value: str) -> None:
        """Sets a single value."""
        first = self._open_insert(Meta).values(key=key, value=value)
        put = first.on_conflict_do_update(index_elements=["key"], set_={"value": value})
        self._connection.execute(put)

    def delete_meta(self, key: str) -> None:
        """Forgets a single value."""
        self._connection.execute(delete(Meta).where(Meta.key == key))

    def state_version(self) -> int:
        """Returns how many signed acts were executed; what a new signature must name."""
        return int(self.get_meta(_STATE_VERSION) or 0)

    def bump_state_version(self) -> int:
        """Raises the state's version by one, so that older signatures are void; returns it."""
        version = self.state_version() + 1
        self.set_meta(_STATE_VERSION, value=str(version))
        return version

    def audit(self, kind: str, *, body: dict[str, object], at: int) -> AuditEntry:
        """Appends to the audit log, in this same transaction, and returns the entry."""
        size = self.audit_size()
        entry = make_entry(size + 1, at=at, kind=kind, body=body)
        self._add(Audit, entry, proposal=body.get("proposal"))
        self.audit_tree.extend([to_bytes(entry.hash)], size=size)
        return entry

    @property
    def audit_tree(self) -> Tree:
        """Returns the tree over the entries."""
        return Tree(self._connection, AuditNode)

    def audit_size(self) -> int:
        """Returns how many leaves the log's tree has; its newest entry has this number."""
        return self.audit_tree.size()

    def audit_node(self, level: int, position: int) -> bytes:
        """Returns the root of a perfect subtree of the log; see `Tree.node`."""
        return self.audit_tree.node(level, position)

    def last_audit_entry(self) -> AuditEntry | None:
        """Returns the newest entry, or None of an empty log."""
        return self._first(AuditEntry, _AUDIT.order_by(Audit.seq.desc()))

    def audit_entries(self, *, since: int = 0, limit: int | None = None) -> list[AuditEntry]:
        """Returns the entries with `seq >= since` in order, `limit` of them at most."""
        statement = _AUDIT.where(Audit.seq >= since).order_by(Audit.seq)
        return self._all(AuditEntry, statement.limit(limit))

    def audit_of_kind(self, kind: str) -> list[AuditEntry]:
        """Returns the entries of one kind, oldest first; it looks at the whole log."""
        return self._all(AuditEntry, _AUDIT.where(Audit.kind == kind).order_by(Audit.seq))

    def audit_of(self, proposal: str, *, limit: int | None = None) -> tuple[list[AuditEntry], int]:
        """Returns the entries whose body names a proposal, oldest first, and how many there are.

        Args:
            limit: only so many, the newest.
        """
        of_it = Audit.proposal == proposal
        counted = select(func.count()).select_from(Audit).where(of_it)
        newest = _AUDIT.where(of_it).order_by(Audit.seq.desc()).limit(limit)
        return self._all(AuditEntry, newest)[::-1], self._connection.execute(counted).scalar_one()

    def put_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Keeps the latest signed checkpoint of the log in place of the one before.

        Raises:
            DataError: the log is shorter.
            StateCorrupt: the checkpoint kept before is of a longer log.
        """
        before = self.latest_checkpoint()
        if before is not None and before.size > checkpoint.size:
            raise StateCorrupt(
                f"a checkpoint of {checkpoint.size} entries cannot follow one of {before.size}",
                mend="sign the newest entry",
            )
        self._connection.execute(delete(LatestCheckpoint))
        self._add(LatestCheckpoint, checkpoint)

    def latest_checkpoint(self) -> Checkpoint | None:
        """Returns the latest signed checkpoint, or None before the first."""
        return self._first(Checkpoint, columns(LatestCheckpoint, Checkpoint))

"""The keys that a server holds: its own, which a kill replaces, and those of roles it plays.

`DIR/server.key` signs what the server records: evidence, revisions, the heads of the log. Keys in
`DIR/keys` named `evaluator*.key` and `attester*.key` sign as whom the policy lists by them. With
`CAMBIUM_SERVER_PASSPHRASE` in the environment all of them are encrypted under it.

When a kill goes on record, the server's key is revoked and another takes its place. The new one is
written to `DIR/server.next.key` before the transaction that puts it into office, and takes the old
file's place after it. Wherever that is cut off, one of the two files is the key in office.
"""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from cambium.core.canonical import canonical_json
from cambium.core.errors import AuditBroken, CambiumError, ConfigError
from cambium.lifecycle.situation import Counting
from cambium.serve.attesters import Attesting, attester_of
from cambium.serve.errors import StateCorrupt
from cambium.serve.log_head import prove_entry, sign_newest
from cambium.serve.request_log import newest_signed
from cambium.serve.revision_records import sign_manifest, verified_revision
from cambium.serve.store.durable import fsync_folder
from cambium.serve.store.key_files import (
    SERVER_PASSPHRASE,
    load_key,
    lock_key,
    passphrase_in,
    save_key,
)
from cambium.serve.store.records import KeyRow
from cambium.serve.store.state import State
from cambium.serve.store.transaction import Transaction
from cambium.trust.attestation import AttestationResult
from cambium.trust.audit import REQUESTS, sign_checkpoint, to_bytes
from cambium.trust.dsse import countersign, seal
from cambium.trust.keys import SigningKey, generate_key
from cambium.trust.policy import Policy, Role

SERVER_KEY, NEXT_KEY, KEYS_FOLDER = "server.key", "server.next.key", "keys"
EVALUATOR, ATTESTER = "evaluator", "attester"
SUCCESSIONS_META = "server_successions"


class Identity:
    """The server's key in office, its attester, and the evaluators' and attesters' keys here."""

    def __init__(self, folder: Path, key: SigningKey) -> None:
        """Raises `ConfigError` where a key's file or the attester's references cannot be used."""
        self._folder = folder
        self._key = key
        self._attesting: tuple[str, Attesting] | None = None
        self._held: dict[str, list[SigningKey]] = {}
        self._held_for: Policy | None = None
        self._read_held()
        self.attestation_label = self._attester().label

    @property
    def key(self) -> SigningKey:
        """Returns the server's key as this process last knew it; see `key_in`."""
        return self._key

    def key_in(self, tx: Transaction) -> SigningKey:
        """Returns the server's key in office as of this transaction.

        A kill in another process may have put another one in its place.

        Raises:
            ConfigError: the key in office is in no file here.
            StateCorrupt: there is none, or more than one.
        """
        row = _in_office(tx)
        if row is None:
            raise StateCorrupt("the state has lost its server's key", mend="restore a backup")
        if row.key_id != self._key.key_id:
            self._key = _found(self._folder, row.key_id)[1]
        return self._key

    def settle(self, state: State) -> None:
        """Takes over the key in office where a kill has just put it there, file and all."""
        with state.read() as tx:
            settled_key(self._folder, self.key_in(tx).key_id)

    def signers(self, name: str, role: Role, counting: Counting) -> list[SigningKey]:
        """Returns the keys here that count for a role; the files are read once for each policy."""
        if counting.policy is not self._held_for:
            self._read_held()
            self._held_for = counting.policy
        listed = {
            person.key_id
            for person in role.list
            if person.key_id not in counting.revoked_keys and not person.has_expired(counting.now)
        }
        return [key for key in self._held[name] if key.key_id in listed]

    def attest(self, counting: Counting, tx: Transaction, *, measurement: str) -> AttestationResult:
        """Returns a fresh appraisal of this process, signed by the attesters whose keys are here.

        Raises:
            AttestationRefused: none could be made, or the policy does not accept it.
        """
        server, policy = self.key_in(tx), counting.policy
        result = self._attester().attest(
            accept=policy.attestation.accept, measurement=measurement, now=counting.now
        )
        role = policy.attesters
        envelope = result.envelope()
        for key in [server] if role is None else self.signers(ATTESTER, role, counting):
            envelope = countersign(key, envelope)
        signatures: Any = envelope["signatures"]
        return replace(result, signatures=tuple(signatures))

    def record(
        self, statement: dict[str, object], counting: Counting, tx: Transaction
    ) -> dict[str, object]:
        """Returns a statement as evidence: signed by the server, and by the evaluators here."""
        envelope, role = seal(self.key_in(tx), statement), counting.policy.evaluators
        for key in [] if role is None else self.signers(EVALUATOR, role, counting):
            envelope = countersign(key, envelope)
        return envelope

    def prepare_successor(self, tx: Transaction) -> SigningKey:
        """Returns a new key, durable in its file; it means nothing until it is put into office.

        Only in the transaction that does, where no other process prepares one.

        Raises:
            ConfigError, StorageFull: it could not be written.
        """
        settled_key(self._folder, self.key_in(tx).key_id)  # the file must not be of this one
        path = self._folder / NEXT_KEY
        path.unlink(missing_ok=True)  # one that never came into office
        key = generate_key()
        save_key(key, path, passphrase=passphrase_in(SERVER_PASSPHRASE))
        return key

    def _attester(self) -> Attesting:
        """Returns the attester, whose evidence is bound to the server's key in office."""
        session = self._key.key_id
        if self._attesting is None or self._attesting[0] != session:
            self._attesting = session, attester_of(self._folder, session=session)
        return self._attesting[1]

    def _read_held(self) -> None:
        folder = self._folder / KEYS_FOLDER
        self._held = {
            name: [_load(path) for path in sorted(folder.glob(f"{name}*.key"))]
            for name in (EVALUATOR, ATTESTER)
        }


def server_identity(folder: Path, state: State) -> Identity:
    """Returns the server's identity, made on the first start and enrolled in the state.

    Raises:
        ConfigError: the state knows another key than the files, or they are gone. A new key
            would not vouch for the revisions and the log that the first one signed.
        StateCorrupt: the state knows more than one.
    """
    with state.transaction() as tx:  # so that of several first starts one makes the key
        enrolled, path = _in_office(tx), folder / SERVER_KEY
        if enrolled is not None:
            return Identity(folder, settled_key(folder, enrolled.key_id))
        if not path.exists():
            save_key(generate_key(), path, passphrase=passphrase_in(SERVER_PASSPHRASE))
        key, now = _load(path), time.time_ns() // 1_000_000
        tx.put_key(KeyRow(key_id=key.key_id, name="server", role="server",
                          public=key.public_key.raw, enrolled_at=now))  # fmt: skip
        tx.audit("key.enrolled", at=now, body={"key_id": key.key_id, "role": "server"})
    return Identity(folder, key)


def _in_office(tx: Transaction) -> KeyRow | None:
    """Returns the server's key in office, None before the first start."""
    rows = tx.list_keys(role="server")
    if len(rows) > 1:
        raise StateCorrupt(f"the state has {len(rows)} server keys in office, which nobody but a "
                           "forger puts there", mend="restore a backup")  # fmt: skip
    return rows[0] if rows else None


def settled_key(folder: Path, key_id: str) -> SigningKey:
    """Returns the key of this id, in `DIR/server.key` from now on.

    Raises:
        ConfigError: neither file holds it.
    """
    file, key = _found(folder, key_id)
    if file.name == NEXT_KEY:
        with contextlib.suppress(FileNotFoundError):  # another process was first
            file.replace(folder / SERVER_KEY)
        fsync_folder(folder)
    return key


def _found(folder: Path, key_id: str) -> tuple[Path, SigningKey]:
    """Returns the key of this id and the file it is in; see `settled_key`."""
    path, following = folder / SERVER_KEY, folder / NEXT_KEY
    if not path.exists() and not following.exists():
        raise ConfigError(f"the server's key {path} is gone", mend="restore it from a backup")
    for file in (following, path):  # from the first to the second it is moved
        if file.exists():
            with contextlib.suppress(FileNotFoundError):
                key = _load(file)
                if key.key_id == key_id:
                    return file, key
    raise ConfigError(f"{path} is not the key of this state's server",
                      mend="restore it from a backup")  # fmt: skip


def succeed(tx: Transaction, old: SigningKey, new: SigningKey, *, at: int) -> None:
    """Puts a new server key into the old one's office, whose last act is to sign the log's head.

    The newest entry says why. The new key takes over what is on record: it signs the heads of both
    lanes and the revisions, each where the old signature holds; what does not hold stays as it is,
    and is found at the next start.

    Raises:
        AuditBroken: the log was cut or rewritten.
    """
    last = sign_newest(tx, old)
    kept: list[Any] = json.loads(tx.get_meta(SUCCESSIONS_META) or "[]")
    tx.set_meta(SUCCESSIONS_META, value=canonical_json([*kept, vars(last)]).decode())
    row = tx.get_key(old.key_id)
    tx.put_key(replace(row, role="retired", revoked_at=at))
    tx.put_key(KeyRow(key_id=new.key_id, name=row.name, role="server",
                      public=new.public_key.raw, enrolled_at=at))  # fmt: skip
    tx.put_checkpoint(sign_checkpoint(new, last.size, to_bytes(last.root)))
    if tx.request_checkpoint() is not None:
        with contextlib.suppress(AuditBroken):
            lane = newest_signed(tx, old)
            head = sign_checkpoint(new, lane.size, to_bytes(lane.root), REQUESTS)
            tx.put_request_checkpoint(head)
    for revision in tx.list_revisions():
        with contextlib.suppress(CambiumError):
            verified_revision(revision, old.public_key)
            signature = sign_manifest(revision.manifest, new)
            tx.sign_revision_again(revision.number, signature)


def successions(tx: Transaction) -> list[dict[str, Any]]:
    """Returns what each former server key signed last, and the proof that it names the next."""
    kept: list[Any] = json.loads(tx.get_meta(SUCCESSIONS_META) or "[]")
    found: list[dict[str, Any]] = []
    for last in kept:
        size = last["size"]
        (entry,) = tx.audit_entries(since=size, limit=1)
        proof = prove_entry(tx.audit_tree, size, size)["proof"]
        found.append({"checkpoint": last, "entry": vars(entry), "proof": proof})
    return found


def _load(path: Path) -> SigningKey:
    """Returns a key that the server holds, encrypted first where it lay open and should not."""
    if passphrase := passphrase_in(SERVER_PASSPHRASE):
        lock_key(path, passphrase)
    return load_key(path, passphrase=passphrase, variable=SERVER_PASSPHRASE)

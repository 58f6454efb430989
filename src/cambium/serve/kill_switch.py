"""The kill switch as the server sees it: a signed file beside the state, watched all the time.

The file is what kills, so that a server whose database, routes or jobs hang can be stopped from
outside: it is written before anything else, and `cambium kill --state DIR` writes it without the
server. The database keeps the fact too, so that removing the file revives nothing. A file that
does not verify, or was signed before the last revival, kills nothing and is said in the log.

With the kill's record the server's key is revoked and another comes into office, which the record
names: whoever revives lets it in. Until then it signs what is logged and nothing else.

Where several processes share the state, each watches the file and the database: a kill in one is a
kill in all, and so is a revival. Each says beside its lock that it has obeyed. A database that does
not answer delays no kill: who may order one is known from when it last did.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cambium.core.canonical import canonical_json
from cambium.core.errors import (
    CambiumError,
    DataError,
    IllegalTransition,
)
from cambium.core.nouns import Signature
from cambium.lifecycle.kill import Killed, Standing, authorise_kill, authorise_revival
from cambium.lifecycle.situation import Counting
from cambium.serve.errors import NotCurrent, StateUnreachable, SystemKilled
from cambium.serve.group_signature import group_signature
from cambium.serve.identity import Identity, succeed
from cambium.serve.log_head import sign_newest
from cambium.serve.rules import Rules
from cambium.serve.signed_records import signature_from_json
from cambium.serve.store.failures import known_errors
from cambium.serve.store.state import State
from cambium.serve.store.transaction import Transaction
from cambium.trust.acts import signature_to_json
from cambium.trust.keys import PublicKey
from cambium.trust.quorum import Approver

KILL_FILE = "kill.json"
KILL_META = "kill"
REVIVED_META = "revived_version"
PERIOD_S = 0.1
MAX_FILE_BYTES = 64_000
MAX_REASON_CHARS = 1000
# Signing in changes nothing, and whoever looks after a kill may have no session yet.
_ALWAYS = ("/kill", "/revive", "/signatures", "/sign-in", "/sign-out")
_log = logging.getLogger(__name__)


class KillSwitch:
    """Whether the system was killed, and the acts that change it.

    `killed` is true from before the call that kills returns, and before any watcher is told.
    """

    def __init__(
        self,
        folder: Path,
        state: State,
        *,
        rules: Rules,
        identity: Identity,
        now_ms: Callable[[], int],
    ) -> None:
        self._rules = rules
        self._file = folder / KILL_FILE
        self._state = state
        self._identity = identity
        self._now_ms = now_ms
        self._killed: Killed | None = None
        self._recorded = False
        self._ignored: bytes | None = None
        self._changes = 0
        self._standing: Standing | None = None
        self._listeners: list[Callable[[Killed | None], None]] = []
        self._lock = threading.RLock()
        self._closing = threading.Event()
        with state.read() as tx:
            self._settle(_recorded(tx))
        self._look()
        # The file is watched by itself: the database may take long to say nothing.
        self._threads = [
            threading.Thread(target=self._watch, args=steps, name="kill switch", daemon=True)
            for steps in ((self._look,), (self._record, self._follow))
        ]
        for thread in self._threads:
            thread.start()

    @property
    def killed(self) -> Killed | None:
        """Returns who killed and why; None while the system lives."""
        return self._killed

    @property
    def serves_base(self) -> bool:
        """Returns whether the bare base answers while the system is killed."""
        policy = self._rules.policy
        return policy is not None and policy.kill.then == "base"

    def error(self) -> SystemKilled:
        """Returns what is told to whoever asks for more than is left."""
        reason = self._killed.reason if self._killed else ""
        return SystemKilled(
            f"the kill switch was pulled: {reason}",
            mend="k approvers sign GET /kill's digest with `cambium revive`",
        )

    def check(self) -> None:
        """Returns while the system lives.

        Raises:
            SystemKilled: it was killed.
        """
        if self._killed is not None:
            raise self.error()

    def check_recorded(self, tx: Transaction) -> None:
        """Returns while no process of this state has killed, as of this transaction.

        Raises:
            SystemKilled: one has.
        """
        if self._killed is not None or tx.get_meta(KILL_META) is not None:
            raise self.error()

    def allows(self, method: str, path: str) -> bool:
        """Returns whether a request may go on: reading may, answering only where policy says so."""
        if self._killed is None or path in _ALWAYS:
            return True
        if path.startswith(("/keys/", "/tokens", "/policy")):
            return True  # what is stolen goes before the others revive
        if path.startswith("/v1/"):
            return self.serves_base and path != "/v1/embeddings"
        return method == "GET" and not path.endswith("/export")  # no weights leave either

    def listen(self, listener: Callable[[Killed | None], None]) -> None:
        """Tells `listener` of the kill, at once if it was, and of each change from now on."""
        with self._lock:
            self._listeners.append(listener)
            if self._killed is not None:
                listener(self._killed)

    def pull(self, reason: str, signatures: Sequence[Signature]) -> Killed:
        """Kills. Durable before it returns; nothing that is under way delays it.

        Returns:
            Who killed: whoever did first, where it is killed already.

        Raises:
            PolicyMissing: no signed policy says who may.
            ThresholdNotMet: no signature is valid.
            IllegalTransition: the reason is empty or too long.
            StorageFull: it is killed, but a restart would not know.
        """
        if not reason.strip() or len(reason) > MAX_REASON_CHARS:
            raise IllegalTransition(
                f"a kill needs a reason of at most {MAX_REASON_CHARS} characters", mend="say why"
            )
        killed = self._authorised(reason, signatures, now=self._now_ms() // 1000)
        with self._lock:
            if self._killed is not None:
                return self._killed
            self._set(killed)
            write_kill_file(self._file, reason, signatures)
        with contextlib.suppress(StateUnreachable):  # it is recorded once the database is back
            self._record()
        return self._killed or killed

    def revive(self, signatures: Sequence[Signature]) -> dict[str, Any]:
        """Lifts the kill, in the log and then in service.

        Raises:
            IllegalTransition: the system is not killed.
            ThresholdNotMet: fewer than k approvers signed the kill's digest.
            NotCurrent: the policy is another one by now.
        """
        policy = self._rules.need()
        self._record()
        with self._lock:
            killed = self._killed
            if killed is None:
                raise IllegalTransition("the system is not killed", mend="see GET /kill")
            with self._state.transaction() as tx:
                row = tx.active_policy()
                if row is None or row.digest != policy.digest:
                    raise NotCurrent("another process has changed the policy",
                                     mend="sign again what GET /kill shows now")  # fmt: skip
                counting = Counting(
                    policy=policy,
                    state_version=tx.state_version(),
                    now=self._now_ms() // 1000,
                    revoked_keys=_revoked(tx),
                )
                counted = authorise_revival(killed, signatures, counting=counting)
                version = tx.bump_state_version()
                tx.set_meta(REVIVED_META, value=str(version))
                tx.delete_meta(KILL_META)
                signed = [signature_to_json(s) for s in counted]
                group = group_signature(policy, counted)
                body: dict[str, object] = {
                    "kill": killed.digest,
                    "server": self._identity.key_in(tx).public_key.raw,
                    "signatures": signed,
                    "group_signature": group,
                }
                self._audit(tx, "system.revived", body)
            with known_errors():
                self._file.unlink(missing_ok=True)
            self._settle(None)
        return {"killed": False, "state_version": version}

    def view(self) -> dict[str, Any]:
        """Returns what GET /kill shows: what a kill would sign, or whom a revival answers."""
        policy = self._rules.policy
        with contextlib.suppress(CambiumError):
            self._record()  # it raises the version that a revival has to name
        with self._lock:  # as it is now that it is on record, with the next server's key
            killed, is_recorded = self._killed, self._recorded
        standing = self._standing_now()
        return {
            "killed": killed is not None,
            "then": policy.kill.then if policy else None,
            "policy_digest": policy.digest if policy else None,
            "state_version": standing.versions[-1],
            "target": list(standing.targets)[-1] if standing.targets else None,
            # What a revival signs names the next server's key, which the record does.
            "digest": killed.digest if killed and is_recorded else None,
            **(killed.to_json() if killed else {}),
        }

    def close(self) -> None:
        """Stops watching."""
        self._closing.set()
        for thread in self._threads:
            thread.join()

    def _watch(self, *steps: Callable[[], None]) -> None:
        said = ""
        while not self._closing.wait(PERIOD_S):
            try:
                for step in steps:
                    step()
                said = ""
            except CambiumError as error:
                if error.code != said:
                    _log.warning("the kill switch hears nothing: %s", error.one_line())
                said = error.code
            except Exception:  # noqa: BLE001 - whatever happens, it goes on watching
                _log.exception("the kill switch could not be looked at or recorded")

    def _look(self) -> None:
        """Obeys the file, if there is one that was not seen before."""
        if self._killed is not None or not self._file.exists():
            return
        data = self._file.read_bytes()[:MAX_FILE_BYTES]
        if data == self._ignored:
            return
        try:
            reason, signatures = read_kill_file(data)
            # An order that was given in time holds for as long as nobody revives.
            in_time = [s.act.expires - 1 for s in signatures]
            killed = self._authorised(
                reason, signatures, now=min([self._now_ms() // 1000, *in_time])
            )
        except StateUnreachable:
            raise  # nobody has said yet that the order does not count
        except CambiumError as error:
            self._ignored = data
            _log.error("%s kills nothing: %s", self._file, error.one_line())
            return
        with self._lock:
            if self._killed is None:
                self._set(killed)

    def _set(self, killed: Killed | None) -> None:
        self._changes += 1
        self._killed, self._recorded, self._ignored = killed, False, None
        for listener in self._listeners:
            listener(killed)

    def _authorised(self, reason: str, signatures: Sequence[Signature], *, now: int) -> Killed:
        self._rules.need()
        standing = self._standing_now()
        # By the clock, not by what an order says of itself.
        today = self._now_ms() // 1000
        people = [p for p in standing.people if not p.has_expired(today)]
        standing = replace(standing, people=people)
        return authorise_kill(reason, signatures, standing=standing, now=now)

    def _standing_now(self) -> Standing:
        """Returns what the state says, or said last where its database is gone."""
        known = self._standing
        if known is not None and not self._state.is_current:
            return known  # asking would take as long as the database is silent
        try:
            with self._state.read() as tx:
                return self._standing_in(tx)
        except StateUnreachable:
            if known is None:
                raise
            return known

    def _standing_in(self, tx: Transaction) -> Standing:
        """Returns who may kill, also with a key that expires, and what an order may name."""
        policy, revoked = self._rules.policy, _revoked(tx)
        listed = (*policy.approvers.list, *policy.kill.operators) if policy else ()
        root = [Approver(name=k.name, public=PublicKey(raw=k.public))
                for k in tx.list_keys(role="root")]  # fmt: skip
        people = [p for p in (*listed, *root) if p.key_id not in revoked]
        first = int(tx.get_meta(REVIVED_META) or 0)
        return Standing(
            people=people,
            targets=[row.digest for row in tx.list_revisions()],
            versions=range(first, tx.state_version() + 1),
            policies={row.digest for row in tx.list_policies()},
        )

    def _record(self) -> None:
        """Writes the kill into the state and its log, if no process has done so yet."""
        with self._lock:
            killed = self._killed
            if killed is None or self._recorded:
                return
            with self._state.transaction() as tx:
                recorded = _recorded(tx)
                if recorded is None and not _is_lifted(killed, tx):
                    recorded = self._put_on_record(killed, tx)
            self._identity.settle(self._state)
            self._settle(recorded)

    def _put_on_record(self, killed: Killed, tx: Transaction) -> Killed:
        """Writes the kill down and revokes the server's key, whose last signature is under it."""
        now, old = self._now_ms(), self._identity.key_in(tx)
        new = self._identity.prepare_successor(tx)
        killed = replace(killed, server=new.public_key.raw)
        tx.set_meta(KILL_META, value=canonical_json(killed.to_json()).decode())
        tx.bump_state_version()
        tx.audit("system.killed", body=killed.to_json(), at=now)
        succeed(tx, old, new, at=now)
        return killed

    def _follow(self) -> None:
        """Obeys what another process has recorded: a kill, or that it was lifted."""
        if not self._state.is_shared:
            return
        before = self._changes
        with self._state.read() as tx:  # without the lock: a kill must not wait for it
            recorded = _recorded(tx)
            self._know(tx)
        with self._lock:
            is_news = recorded != (self._killed if self._recorded else None)
            if is_news and self._changes == before:
                self._settle(recorded)

    def _know(self, tx: Transaction) -> None:
        """Keeps who may kill for when the database is gone; a signed act may have changed it."""
        known = self._standing
        is_old = known is None or not known.targets or tx.state_version() != known.versions[-1]
        if is_old:
            self._standing = self._standing_in(tx)

    def _settle(self, recorded: Killed | None) -> None:
        """Takes over what the state says; whoever ordered it from outside is told."""
        known = self._killed
        if recorded and known and recorded.signature == known.signature:
            self._killed = recorded  # the same order: nobody has to be told again
        elif recorded != known:
            self._set(recorded)
        self._changes += 1
        self._recorded = recorded is not None
        self._state.note_obeyed(self._recorded)

    def _audit(self, tx: Transaction, kind: str, body: dict[str, object]) -> None:
        tx.audit(kind, body=body, at=self._now_ms())
        sign_newest(tx, self._identity.key_in(tx))


def write_kill_file(path: Path, reason: str, signatures: Sequence[Signature]) -> None:
    """Writes the order to kill, whole and durable, beside the state.

    Raises:
        StorageFull: the disk took no more.
    """
    signed = [signature_to_json(s) for s in signatures]
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with known_errors():
        with partial.open("wb") as file:
            file.write(canonical_json({"reason": reason, "signatures": signed}))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read_kill_file(data: bytes) -> tuple[str, list[Signature]]:
    """Returns the reason and the signatures; says nothing about validity.

    Raises:
        DataError: it is another kind of file.
    """
    try:
        found: Any = json.loads(data)
        reason, signatures = found["reason"], found["signatures"]
        if not isinstance(reason, str) or not isinstance(signatures, list):
            raise TypeError("reason and signatures")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError("this is no order to kill", mend="run `cambium kill`") from error
    return reason, [signature_from_json(s) for s in signatures]


def _recorded(tx: Transaction) -> Killed | None:
    """Returns the kill that the state holds."""
    kept = tx.get_meta(KILL_META)
    return None if kept is None else _from_json(json.loads(kept))


def _is_lifted(killed: Killed, tx: Transaction) -> bool:
    """Returns whether a revival has answered this order before it was recorded here."""
    return killed.signature.act.state_version < int(tx.get_meta(REVIVED_META) or 0)


def _from_json(record: dict[str, Any]) -> Killed:
    return Killed(
        reason=record["reason"],
        name=record["name"],
        signature=signature_from_json(record["signature"]),
        server=record.get("server", ""),
    )


def _revoked(tx: Transaction) -> frozenset[str]:
    return frozenset(k.key_id for k in tx.list_keys() if k.revoked_at is not None)

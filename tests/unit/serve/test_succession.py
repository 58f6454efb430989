"""A kill puts another server key into office: cut off anywhere, one file is the key in office."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cambium.core.canonical import digest_bytes
from cambium.core.errors import AuditBroken, ConfigError, SignatureInvalid
from cambium.core.nouns import Revision
from cambium.serve import identity
from cambium.serve.identity import (
    NEXT_KEY,
    SERVER_KEY,
    Identity,
    server_identity,
    succeed,
    successions,
)
from cambium.serve.log_head import check_log, sign_newest
from cambium.serve.request_log import log_requests, newest_signed
from cambium.serve.revision_records import signed_row, verified_revision
from cambium.serve.store.key_files import SERVER_PASSPHRASE
from cambium.serve.store.records import TraceRow
from cambium.serve.store.state import State
from cambium.serve.store.transaction import Transaction
from cambium.trust.keys import SigningKey

KILL: dict[str, object] = {"reason": "smoke", "name": "operator", "signature": {}}


class Cut(Exception):
    """Power went here."""


def kill(tx: Transaction, holder: Identity) -> SigningKey:
    """What the kill switch writes, without the people."""
    old, new = holder.key_in(tx), holder.prepare_successor(tx)
    tx.audit("system.killed", body={**KILL, "server": new.public_key.raw}, at=5)
    succeed(tx, old, new, at=5)
    return new


def begun(folder: Path, state: State) -> Identity:
    """A state with a revision, a trace and a log, all signed by its first key."""
    holder = server_identity(folder, state)
    with state.transaction() as tx:
        revision = Revision(
            number=1, kind="genesis", base_digest=digest_bytes(b"base"), bank=(),
            policy_digest="", created_at=1, attestation="none",
        )  # fmt: skip
        tx.add_revision(signed_row(revision, holder.key, at=1))
        tx.audit("revision.genesis", body={"revision": 1}, at=1)
        trace = TraceRow(request_id="r1", tenant="default", at=2, record={"x": 1})
        tx.put_traces([trace])
        log_requests(tx, [trace], holder.key)
        sign_newest(tx, holder.key)
    return holder


def test_the_new_key_takes_over_all_that_is_on_record(tmp_path: Path) -> None:
    with State.open(tmp_path) as state:
        holder = begun(tmp_path, state)
        old = holder.key
        with state.transaction() as tx:
            new = kill(tx, holder)
            assert holder.key is old  # in office from the commit on
        holder.settle(state)
        assert holder.key.key_id == new.key_id != old.key_id
        assert not (tmp_path / NEXT_KEY).exists()
        with state.transaction() as tx:
            (row,) = tx.list_revisions()
            verified_revision(row, new.public_key)
            with pytest.raises(SignatureInvalid):
                verified_revision(row, old.public_key)
            newest_signed(tx, new)
            tx.audit("policy.changed", body={}, at=6)
            sign_newest(tx, new)
            with pytest.raises(AuditBroken):
                sign_newest(tx, old)
            with pytest.raises(AuditBroken):
                newest_signed(tx, old)
            gone = tx.get_key(old.key_id)
            assert (gone.role, gone.revoked_at) == ("retired", 5)
            (told,) = successions(tx)
            assert told["checkpoint"]["key_id"] == old.key_id
            assert told["entry"]["body"]["server"] == new.public_key.raw
        assert check_log(state, new.public_key) == 4
    with State.open(tmp_path) as state:
        assert server_identity(tmp_path, state).key.key_id == new.key_id


@pytest.mark.parametrize("secret", ["", "of the operator"])
@pytest.mark.parametrize("where", ["prepared", "written", "committed", "moved", "done"])
def test_cut_off_at_every_step_the_state_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, secret: str
) -> None:
    """Before the commit the old key is in office, after it the new one, whatever lies there."""
    monkeypatch.setenv(SERVER_PASSPHRASE, secret)
    with State.open(tmp_path) as state:
        holder = begun(tmp_path, state)
        old = holder.key.key_id
        new = ""
        with pytest.raises(Cut):
            with state.transaction() as tx:
                if where == "prepared":
                    holder.prepare_successor(tx)
                    raise Cut
                new = kill(tx, holder).key_id
                if where == "written":
                    raise Cut
            if where == "committed":
                raise Cut
            if where == "moved":  # cut off before the folder was synced
                monkeypatch.setattr(identity, "fsync_folder", _cut)
            holder.settle(state)
            raise Cut
    monkeypatch.undo()
    monkeypatch.setenv(SERVER_PASSPHRASE, secret)
    after = where in ("committed", "moved", "done")
    for _ in range(2):
        with State.open(tmp_path) as state:
            found = server_identity(tmp_path, state)
            assert found.key.key_id == (new if after else old)
            check_log(state, found.key.public_key)
            assert after is not (tmp_path / NEXT_KEY).exists()
    with State.open(tmp_path) as state:  # and the next kill finds its way
        again = server_identity(tmp_path, state)
        with state.transaction() as tx:
            last = kill(tx, again)
        again.settle(state)
        assert again.key.key_id == last.key_id
        check_log(state, last.public_key)
        with state.read() as tx:
            assert len(successions(tx)) == (2 if after else 1)


def test_another_process_finds_the_key_before_and_after_it_is_moved(tmp_path: Path) -> None:
    for is_moved in (False, True):
        folder = tmp_path / str(is_moved)
        with State.open(folder) as state:
            one = begun(folder, state)
            other = server_identity(folder, state)
            with state.transaction() as tx:
                new = kill(tx, one)
            if is_moved:
                one.settle(state)
            with state.transaction() as tx:
                assert other.key_in(tx).key_id == new.key_id
                sign_newest(tx, other.key_in(tx))
            other.settle(state)
            one.settle(state)
            assert one.key.key_id == new.key_id and not (folder / NEXT_KEY).exists()


def test_a_key_that_no_kill_put_there_opens_nothing(tmp_path: Path) -> None:
    other = tmp_path / "other"
    with State.open(other) as state:
        server_identity(other, state)
    folder = tmp_path / "state"
    with State.open(folder) as state:
        begun(folder, state)
    stolen = (folder / SERVER_KEY).read_bytes()
    (folder / NEXT_KEY).write_bytes((other / SERVER_KEY).read_bytes())
    with State.open(folder) as state:  # beside the right one it is nothing
        server_identity(folder, state)
    (folder / SERVER_KEY).unlink()
    with State.open(folder) as state, pytest.raises(ConfigError, match="is not the key"):
        server_identity(folder, state)
    (folder / SERVER_KEY).write_bytes(stolen)
    with State.open(folder) as state:
        holder = server_identity(folder, state)
        with state.transaction() as tx:
            kill(tx, holder)
        holder.settle(state)
    (folder / SERVER_KEY).write_bytes(stolen)  # the revoked one, from a backup
    with State.open(folder) as state, pytest.raises(ConfigError, match="is not the key"):
        server_identity(folder, state)


def test_what_did_not_hold_before_is_not_made_good(tmp_path: Path) -> None:
    """The new key signs no revision and no lane that the old one had not signed as it is."""
    with State.open(tmp_path) as state:
        holder = begun(tmp_path, state)
        old = holder.key
        with state.transaction() as tx:
            tx.sign_revision_again(1, {"key_id": old.key_id, "signature": "00" * 64})
        with state.transaction() as tx:
            new = kill(tx, holder)
        with state.read() as tx:
            (row,) = tx.list_revisions()
            with pytest.raises(SignatureInvalid):
                verified_revision(row, new.public_key)


def _cut(*_: Any) -> None:
    raise Cut

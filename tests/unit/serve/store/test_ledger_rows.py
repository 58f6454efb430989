"""Policies, keys, the state's version and the audit log."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import inspect

from cambium.core.errors import AuditBroken, DataError, KeyUnknown
from cambium.serve.errors import PolicyMissing, StateCorrupt
from cambium.serve.store.records import KeyRow, PolicyRow
from cambium.serve.store.state import State
from cambium.trust.audit import AuditEntry, grow, make_entry, sign_checkpoint, verify_log
from cambium.trust.keys import generate_key
from cambium.trust.merkle import GrowingTree, tree_root

TOML = '# a comment\r\n[approvers]\nk = 2\n\tname = "é"\n'


def policy(digest: str) -> PolicyRow:
    return PolicyRow(digest=digest, toml=TOML, signature={"sig": digest}, created_at=1)


def key(key_id: str = "k-1", *, public: str = "00", at: int = 1, role: str = "approver") -> KeyRow:
    return KeyRow(key_id=key_id, name="ann", role=role, public=public, enrolled_at=at)


def test_one_policy_is_in_force_and_the_others_stay(state: State) -> None:
    with state.transaction() as tx:
        assert tx.active_policy() is None
        tx.set_policy(policy("a"))
        tx.set_policy(policy("b"))
    with state.read() as view:
        assert view.active_policy() == policy("b")
        assert view.get_policy("a") == policy("a")
        with pytest.raises(PolicyMissing):
            view.get_policy("c")
    with state.transaction() as tx:
        tx.set_policy(policy("a"))
        assert tx.active_policy() == policy("a")


def test_keys_are_enrolled_and_revoked(state: State) -> None:
    second = key("k-2", public="01", at=2, role="root")
    with state.transaction() as tx:
        tx.put_key(second)
        tx.put_key(key())
        tx.revoke_key("k-1", at=7)
        tx.revoke_key("k-1", at=9)
        with pytest.raises(KeyUnknown):
            tx.revoke_key("k-3", at=7)
    with state.read() as view:
        assert view.list_keys() == [replace(key(), revoked_at=7), second]
        assert view.list_keys(role="root") == [second]
        with pytest.raises(KeyUnknown):
            view.get_key("k-3")


def test_the_same_key_bytes_cannot_enrol_under_two_ids(state: State) -> None:
    with state.transaction() as tx:
        tx.put_key(key())
    with pytest.raises(DataError, match="contradicts"), state.transaction() as tx:
        tx.put_key(key("k-2"))
    with state.read() as view:
        assert view.list_keys() == [key()]


def test_the_state_version_only_grows(state: State) -> None:
    with state.transaction() as tx:
        assert tx.state_version() == 0
        assert [tx.bump_state_version() for _ in range(3)] == [1, 2, 3]
        tx.set_meta("base_digest", value="x")
        tx.set_meta("base_digest", value="y")
    with state.read() as view:
        assert view.state_version() == 3
        assert view.get_meta("base_digest") == "y"
        assert view.get_meta("nothing") is None


def test_the_log_is_a_tree(state: State) -> None:
    bodies: list[dict[str, object]] = [{"n": n, "loss": n / 3, "é": [None]} for n in range(5)]
    with state.transaction() as tx:
        assert tx.last_audit_entry() is None
        written = [tx.audit("learn", body=body, at=n) for n, body in enumerate(bodies)]
    with state.read() as view:
        read = view.audit_entries()
        assert read == written
        assert view.last_audit_entry() == written[-1]
        assert view.audit_entries(since=written[2].seq) == written[2:]
        assert view.audit_entries(since=written[1].seq, limit=2) == written[1:3]
        assert view.audit_entries(limit=0) == []
    for seq, (entry, body) in enumerate(zip(read, bodies, strict=True), 1):
        assert entry == make_entry(seq, at=entry.at, kind="learn", body=body)
    with state.read() as view:
        assert view.audit_size() == 5
        assert tree_root(5, view.audit_node) == root_of(read)
        with pytest.raises(AuditBroken, match="entry 5"):
            view.audit_node(1, 2)


def test_the_log_and_what_it_tells_of_stand_or_fall_together(state: State) -> None:
    with state.transaction() as tx:
        tx.bump_state_version()
        first = tx.audit("revoke", body={}, at=1)
    with pytest.raises(RuntimeError, match="now"), state.transaction() as tx:
        tx.bump_state_version()
        tx.audit("revoke", body={}, at=2)
        raise RuntimeError("now")
    with state.read() as view:
        assert view.state_version() == 1
        assert view.audit_entries() == [first]


def test_a_proposal_finds_its_entries_without_reading_the_log(state: State) -> None:
    with state.transaction() as tx:
        for n in range(6):
            tx.audit("look", body={"proposal": f"p-{n % 2}", "quotes": "p-0"}, at=n)
        entries, total = tx.audit_of("p-0", limit=2)
        indexed = [i["column_names"] for i in inspect(tx._connection).get_indexes("audit")]
    assert ([e.seq for e in entries], total) == ([3, 5], 3)
    assert ["proposal", "seq"] in indexed


def root_of(entries: list[AuditEntry]) -> bytes:
    tree = GrowingTree()
    for entry in entries:
        grow(tree, entry)
    return tree.root()


def test_only_the_latest_checkpoint_is_kept_and_it_verifies(state: State) -> None:
    server = generate_key()
    with state.transaction() as tx:
        assert tx.latest_checkpoint() is None
        entries = [tx.audit("x", body={}, at=n) for n in range(2)]
        first, second = (sign_checkpoint(server, n, root_of(entries[:n])) for n in (1, 2))
        tx.put_checkpoint(first)
        tx.put_checkpoint(second)
        with pytest.raises(StateCorrupt, match="cannot follow"):
            tx.put_checkpoint(first)
    with state.read() as view:
        assert view.latest_checkpoint() == second
        read = view.audit_entries()
    assert verify_log(read, checkpoint=second, server_public=server.public_key) == 2
    with pytest.raises(DataError), state.transaction() as tx:
        tx.put_checkpoint(sign_checkpoint(server, 3, b""))
    with state.read() as view:
        assert view.latest_checkpoint() == second


def test_a_changed_entry_is_found(state: State) -> None:
    with state.transaction() as tx:
        for n in range(3):
            tx.audit("learn", body={"n": n}, at=n)
    with state._connection_for_writing() as connection:
        connection.exec_driver_sql("UPDATE audit SET body = '{\"n\":7}' WHERE seq = 2")
    with state.read() as view, pytest.raises(AuditBroken) as broken:
        root_of(view.audit_entries())
    assert broken.value.detail["seq"] == 2

"""Adapters, versions, learn steps and examples."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cambium.core.canonical import digest_bytes
from cambium.core.errors import ConsentMissing, DataError
from cambium.serve.adapter_states import AdapterState
from cambium.serve.errors import AdapterNotFound, StateCorrupt
from cambium.serve.store.records import AdapterRecord, ExampleRecord, LearnRecord, VersionRecord
from cambium.serve.store.state import State

MISSING = "sha256:" + "0" * 64
D1, D2 = digest_bytes(b"1"), digest_bytes(b"2")


def adapter(name: str = "notes", **changes: object) -> AdapterRecord:
    record = AdapterRecord(
        name=name,
        digest=D1,
        state=AdapterState.EPHEMERAL,
        tenant="acme",
        domain=None,
        scope="text",
        config_json='{"r": 8,  "bias":"none"}',
        parent_revision=1,
        created_at=1_000,
        expires_at=2_000,
        weights_blob=None,
    )
    return replace(record, **changes)  # type: ignore[arg-type]


def example(content: bytes, *, blob: str, **changes: object) -> ExampleRecord:
    record = ExampleRecord(
        adapter="notes", digest=digest_bytes(content), blob=blob, kind="text", source="a.md",
        consent="training", at=5,
    )  # fmt: skip
    return replace(record, **changes)  # type: ignore[arg-type]


def test_an_adapter_comes_back_as_it_was_put(state: State) -> None:
    weights, optimizer = state.blobs.put(b"w"), state.blobs.put(b"o")
    first = adapter()
    later = adapter(digest=D2, weights_blob=weights, optimizer_blob=optimizer, steps=8,
                    domain="law", detail={"norm": 0.1, "é": [1, None]})  # fmt: skip
    with state.transaction() as tx:
        tx.put_adapter(first)
        assert tx.get_adapter("notes") == first
        tx.put_adapter(later)
    with state.read() as view:
        assert view.get_adapter("notes") == later
        assert view.list_adapters() == [later]
        assert isinstance(view.get_adapter("notes").state, AdapterState)


def test_lists_choose_by_state_and_tenant(state: State) -> None:
    with state.transaction() as tx:
        tx.put_adapter(adapter("b", created_at=2))
        tx.put_adapter(adapter("a", created_at=3, tenant="other"))
        tx.put_adapter(adapter("c", created_at=1, state=AdapterState.STABLE))
    with state.read() as view:
        assert [a.name for a in view.list_adapters()] == ["c", "b", "a"]
        assert [a.name for a in view.list_adapters(state=AdapterState.EPHEMERAL)] == ["b", "a"]
        assert [a.name for a in view.list_adapters(tenant="other")] == ["a"]
        assert view.list_adapters(state=AdapterState.STABLE, tenant="other") == []


def test_an_unknown_name_is_an_error(state: State) -> None:
    with state.read() as view:
        assert view.find_adapter("nobody") is None
        with pytest.raises(AdapterNotFound):
            view.get_adapter("nobody")
        with pytest.raises(AdapterNotFound):
            view.get_version("nobody", D1)


def test_a_row_cannot_name_a_missing_blob(state: State) -> None:
    with state.transaction() as tx:
        tx.put_adapter(adapter())
        with pytest.raises(StateCorrupt, match="missing"):
            tx.put_adapter(adapter(weights_blob=MISSING))
        with pytest.raises(StateCorrupt, match="missing"):
            tx.put_adapter(adapter(optimizer_blob=MISSING))
        with pytest.raises(StateCorrupt, match="missing"):
            tx.add_example(example(b"x", blob=MISSING))
        version = VersionRecord(name="notes", digest=D1, config_json="{}", weights_blob=MISSING,
                                created_at=1)  # fmt: skip
        with pytest.raises(StateCorrupt, match="missing"):
            tx.put_version(version)


def test_a_version_stays_as_it_was_first_kept(state: State) -> None:
    weights, others = state.blobs.put(b"w"), state.blobs.put(b"other")
    version = VersionRecord(name="notes", digest=D1, config_json='{ "r":8}', weights_blob=weights,
                            created_at=1)  # fmt: skip
    second = replace(version, digest=D2, created_at=2)
    with state.transaction() as tx:
        tx.put_adapter(adapter())
        tx.put_version(version)
        tx.put_version(second)
        tx.put_version(replace(version, weights_blob=others))
    with state.read() as view:
        assert view.get_version("notes", D1) == version
        assert view.list_versions("notes") == [version, second]


def test_learn_steps_are_kept_in_order(state: State) -> None:
    step = LearnRecord(
        adapter="notes", at=7, digest_before=D1, digest_after=D2, losses=(6.31, 0.1 + 0.2),
        steps=2, num_examples=3, consent=None, source=None, monitors={"shift": -0.01},
    )  # fmt: skip
    with state.transaction() as tx:
        tx.put_adapter(adapter())
        ids = [tx.add_learn_step(step), tx.add_learn_step(replace(step, losses=()))]
    with state.read() as view:
        assert view.list_learn_steps("notes") == [
            replace(step, id=ids[0]),
            replace(step, losses=(), id=ids[1]),
        ]
        assert ids[0] < ids[1]
        assert view.monitors_of(["notes", "new"]) == {"notes": [{"shift": -0.01}] * 2, "new": []}


def test_a_learn_step_of_nothing_is_refused(state: State) -> None:
    step = LearnRecord(adapter="nobody", at=7, digest_before=D1, digest_after=D2, losses=(1.0,),
                       steps=1, num_examples=1, consent=None, source=None)  # fmt: skip
    with pytest.raises(DataError, match="contradicts"), state.transaction() as tx:
        tx.add_learn_step(step)


def test_a_loss_that_is_no_number_is_refused(state: State) -> None:
    step = LearnRecord(adapter="notes", at=7, digest_before=D1, digest_after=D2,
                       losses=(float("nan"),), steps=1, num_examples=1, consent=None,
                       source=None)  # fmt: skip
    with pytest.raises(DataError, match="not canonical JSON"), state.transaction() as tx:
        tx.put_adapter(adapter())
        tx.add_learn_step(step)
    with state.read() as view:
        assert view.list_adapters() == []


def test_an_example_is_kept_once_and_only_with_consent(state: State) -> None:
    blob = state.blobs.put(b"text")
    with state.transaction() as tx:
        tx.put_adapter(adapter())
        tx.put_adapter(adapter("other"))
        assert tx.add_example(example(b"1", blob=blob))
        assert not tx.add_example(example(b"1", blob=blob, at=9))
        assert tx.add_example(example(b"1", blob=blob, adapter="other"))
        with pytest.raises(ConsentMissing):
            tx.add_example(example(b"2", blob=blob, consent=""))
    with state.read() as view:
        assert [e.at for e in view.list_examples("notes")] == [5]
        assert view.count_examples("notes") == view.count_examples("other") == 1


def test_forgotten_examples_leave_no_blob(state: State) -> None:
    blob = state.blobs.put(b"text")
    with state.transaction() as tx:
        tx.put_adapter(adapter())
        tx.add_example(example(b"1", blob=blob))
    assert state.sweep_blobs(grace_s=0) == 0
    with state.transaction() as tx:
        assert tx.delete_examples("notes") == 1
    assert state.sweep_blobs(grace_s=0) == 1
    assert not state.blobs.has(blob)

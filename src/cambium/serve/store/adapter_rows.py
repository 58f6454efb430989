"""Rows of adapters: their versions, what they learned, and the examples given with consent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import delete, func, select

from cambium.core.errors import ConsentMissing
from cambium.serve.adapter_states import AdapterState
from cambium.serve.errors import AdapterNotFound
from cambium.serve.store.records import (
    AdapterRecord,
    ExampleRecord,
    LearnRecord,
    ReplayRecord,
    VersionRecord,
)
from cambium.serve.store.rows import Rows, columns, values_of
from cambium.serve.store.schema import (
    Adapter,
    AdapterVersion,
    Example,
    LearnStep,
    Meta,
    Proposal,
    Replay,
)

_ADAPTERS = columns(Adapter, AdapterRecord)
_VERSIONS = columns(AdapterVersion, VersionRecord)
# Before an adapter's name: the digests of its examples for which consent was withdrawn.
_WITHDRAWN = "withdrawn:"


class AdapterRows(Rows):
    """Adapters by name, versions by name and digest."""

    def put_adapter(self, record: AdapterRecord) -> None:
        """Inserts the adapter, or replaces what its name stood for.

        Raises:
            StateCorrupt: a blob it names was not put before.
        """
        self._need_blob(record.weights_blob)
        self._need_blob(record.optimizer_blob)
        self._put(Adapter, record)

    def find_adapter(self, name: str) -> AdapterRecord | None:
        """Returns the adapter of this name, or None."""
        return self._first(AdapterRecord, _ADAPTERS.where(Adapter.name == name))

    def get_adapter(self, name: str) -> AdapterRecord:
        """Returns the adapter of this name.

        Raises:
            AdapterNotFound: there is none.
        """
        record = self.find_adapter(name)
        if record is None:
            raise AdapterNotFound(f"no adapter is named {name!r:.100}", mend="list the adapters")
        return record

    def list_adapters(
        self, *, state: AdapterState | None = None, tenant: str | None = None
    ) -> list[AdapterRecord]:
        """Returns the adapters, oldest first, of one state or tenant if given."""
        statement = _ADAPTERS.order_by(Adapter.created_at, Adapter.name)
        if state is not None:
            statement = statement.where(Adapter.state == state)
        if tenant is not None:
            statement = statement.where(Adapter.tenant == tenant)
        return self._all(AdapterRecord, statement)

    def put_version(self, record: VersionRecord) -> None:
        """Keeps a version for good, as it was first put; the adapter's own row must be there.

        Raises:
            StateCorrupt: the blob it names was not put before.
            DataError: there is no adapter of this name.
        """
        self._need_blob(record.weights_blob)
        self._add_once(AdapterVersion, record)

    def get_version(self, name: str, digest: str) -> VersionRecord:
        """Returns the kept version `name@digest`.

        Raises:
            AdapterNotFound: no such version was kept.
        """
        statement = _VERSIONS.where(AdapterVersion.name == name, AdapterVersion.digest == digest)
        record = self._first(VersionRecord, statement)
        if record is None:
            raise AdapterNotFound(
                f"no kept version is {name!r:.100}@{digest:.71}", mend="list the adapters"
            )
        return record

    def list_versions(self, name: str) -> list[VersionRecord]:
        """Returns the kept versions of this name, oldest first."""
        ordered = _VERSIONS.order_by(AdapterVersion.created_at, AdapterVersion.digest)
        return self._all(VersionRecord, ordered.where(AdapterVersion.name == name))

    def add_learn_step(self, record: LearnRecord) -> int:
        """Adds an accepted call to learn and returns its id; `record.id` is ignored.

        Raises:
            DataError: there is no adapter of this name.
        """
        return self._add_numbered(LearnStep, record)

    def list_learn_steps(self, adapter: str) -> list[LearnRecord]:
        """Returns the accepted calls to learn, oldest first."""
        ordered = columns(LearnStep, LearnRecord).order_by(LearnStep.id)
        return self._all(LearnRecord, ordered.where(LearnStep.adapter == adapter))

    def monitors_of(self, adapters: Sequence[str]) -> dict[str, list[dict[str, object]]]:
        """Returns by adapter what the monitors said at each of its calls, oldest first."""
        found: dict[str, list[dict[str, object]]] = {name: [] for name in adapters}
        chosen = select(LearnStep.adapter, LearnStep.monitors).order_by(LearnStep.id)
        for name, said in self._connection.execute(chosen.where(LearnStep.adapter.in_(adapters))):
            found[name].append(said)
        return found

    def add_example(self, record: ExampleRecord) -> bool:
        """Keeps an example given with consent; returns False if this adapter has it already.

        Raises:
            ConsentMissing: `record.consent` is empty.
            StateCorrupt: the blob it names was not put before.
            DataError: there is no adapter of this name.
        """
        if not record.consent:
            raise ConsentMissing(
                "an example without consent is not kept", mend="give consent with the examples"
            )
        self._need_blob(record.blob)
        withdrawn = self.withdrawn(record.adapter)
        if record.digest in withdrawn:  # given anew
            self._set_withdrawn(record.adapter, withdrawn - {record.digest})
        values = values_of(record)
        del values["id"]
        insert = self._open_insert(Example).values(**values)
        once = insert.on_conflict_do_nothing(index_elements=["adapter", "digest"])
        return self._connection.execute(once.returning(Example.id)).first() is not None

    def list_examples(self, adapter: str) -> list[ExampleRecord]:
        """Returns the kept examples, in the order in which they came."""
        ordered = columns(Example, ExampleRecord).order_by(Example.id)
        return self._all(ExampleRecord, ordered.where(Example.adapter == adapter))

    def has_example(self, adapter: str, digest: str) -> bool:
        """Returns whether an example of this digest is kept for the adapter."""
        wanted = (Example.adapter == adapter) & (Example.digest == digest)
        return self._connection.execute(select(Example.id).where(wanted)).first() is not None

    def count_examples(self, adapter: str) -> int:
        """Returns how many examples are kept for this adapter."""
        counted = select(func.count()).select_from(Example).where(Example.adapter == adapter)
        return self._connection.execute(counted).scalar_one()

    def delete_examples(self, adapter: str, *, source: str | None = None) -> int:
        """Forgets this adapter's examples and what replays them; their blobs go with the sweep.

        Args:
            source: only what came from it.

        Returns:
            How many examples went.
        """
        wanted = Example.adapter == adapter
        if source is not None:
            wanted &= Example.source == source
        gone = self._connection.execute(delete(Example).where(wanted)).rowcount
        # Two sources may have sent one text: it is kept under the first, and replayed under either.
        kept = select(Example.digest).where(Example.adapter == adapter)
        left = set(self._connection.execute(kept).scalars())
        for row in self.list_replay(adapter):
            if row.source == source or row.key.rpartition(":")[0] not in left:
                self.delete_replay(adapter, row.key)
        return gone

    def withdraw_consent(self, adapter: str, *, source: str | None = None) -> int:
        """Forgets this adapter's examples, also where a proposal names them; see `withdrawn`.

        Args:
            source: only what came from it.

        Returns:
            How many examples went.
        """
        named = [(e.digest, e.source) for e in self.list_examples(adapter)]
        filed: dict[str, Any]
        for filed in self._connection.execute(select(Proposal.record)).scalars():
            if filed["adapter_name"] == adapter:
                named += [(e["digest"], e["source"]) for e in filed["provenance"]["examples"]]
        before = self.withdrawn(adapter)
        gone = {digest for digest, by in named if source is None or by == source} - before
        self.delete_examples(adapter, source=source)
        if gone:
            self._set_withdrawn(adapter, before | gone)
        return len(gone)

    def withdrawn(self, adapter: str) -> frozenset[str]:
        """Returns the digests of examples that nobody may read any more, whatever names them."""
        key = Meta.key == _WITHDRAWN + adapter
        found = self._connection.execute(select(Meta.value).where(key)).scalar()
        return frozenset(found.split()) if found else frozenset()

    def _set_withdrawn(self, adapter: str, digests: frozenset[str] | set[str]) -> None:
        values = {"key": _WITHDRAWN + adapter, "value": " ".join(sorted(digests))}
        put = self._open_insert(Meta).values(**values)
        put = put.on_conflict_do_update(index_elements=["key"], set_={"value": values["value"]})
        self._connection.execute(put)

    def put_replay(self, record: ReplayRecord) -> None:
        """Inserts a row of an adapter's replay buffer, or replaces the one with its key."""
        self._put(Replay, record)

    def delete_replay(self, adapter: str, key: str) -> None:
        """Takes a row out of an adapter's replay buffer, if it is there."""
        gone = delete(Replay).where(Replay.adapter == adapter, Replay.key == key)
        self._connection.execute(gone)

    def list_replay(self, adapter: str) -> list[ReplayRecord]:
        """Returns the rows of an adapter's replay buffer, by key."""
        ordered = columns(Replay, ReplayRecord).order_by(Replay.key)
        return self._all(ReplayRecord, ordered.where(Replay.adapter == adapter))

"""One transaction on the state: every row it writes is there afterwards, or none is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import select

from cambium.core.canonical import DIGEST
from cambium.serve.store.adapter_rows import AdapterRows
from cambium.serve.store.ledger_rows import LedgerRows
from cambium.serve.store.process_rows import ProcessRows
from cambium.serve.store.proposal_rows import ProposalRows
from cambium.serve.store.schema import Adapter, AdapterVersion, Example, Proposal, Revision
from cambium.serve.store.token_rows import TokenRows
from cambium.serve.store.trace_rows import TraceRows

# Where a blob may be named, beside proposals; a digest in a trace or the log keeps nothing alive.
_NAMING_BLOBS = (
    (Adapter.weights_blob, Adapter.optimizer_blob, Adapter.detail),
    (AdapterVersion.weights_blob,),
    (Example.blob,),
    (Revision.manifest,),
)


class Transaction(AdapterRows, ProposalRows, LedgerRows, TokenRows, TraceRows, ProcessRows):
    """What `State.transaction` and `State.read` give; not to be used after their end."""

    def blobs_named(self) -> set[str]:
        """Returns every digest in the rows that may name a blob."""
        return set(self._digests())

    def _digests(self) -> Iterator[str]:
        for named in _NAMING_BLOBS:
            for row in self._connection.execute(select(*named)):
                for value in row:
                    yield from DIGEST.findall(str(value))
        withdrawn: dict[str, frozenset[str]] = {}
        record: dict[str, Any]
        for record in self._connection.execute(select(Proposal.record)).scalars():
            name = record.get("adapter_name", "")
            examples = record.get("provenance", {}).get("examples", ())
            withdrawn.setdefault(name, self.withdrawn(name))
            gone = {e["blob"] for e in examples if e["digest"] in withdrawn[name]}
            yield from set(DIGEST.findall(str(record))) - gone

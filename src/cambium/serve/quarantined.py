"""What is in quarantine: adapters that a revision brought, and that never answer again.

It is in the state and, signed, in the log; the two are compared at every start, so that nobody
lifts it by editing a row.
"""

from __future__ import annotations

import json
from collections.abc import Collection

from cambium.core.canonical import canonical_json
from cambium.core.errors import DigestMismatch
from cambium.serve.errors import AdapterQuarantined
from cambium.serve.store.state import State
from cambium.serve.store.transaction import Transaction

KIND = "revision.quarantined"
_META = "quarantined"


def quarantined(tx: Transaction) -> frozenset[str]:
    """Returns the digests of the adapters that never answer again."""
    return frozenset(json.loads(tx.get_meta(_META) or "[]"))


def add_quarantined(tx: Transaction, digests: Collection[str]) -> None:
    """Puts adapters into quarantine; the caller logs it."""
    tx.set_meta(_META, value=canonical_json(sorted({*digests, *quarantined(tx)})).decode())


def refuse_quarantined(tx: Transaction, name: str, digest: str) -> None:
    """Refuses a version that is in quarantine.

    Raises:
        AdapterQuarantined: it is.
    """
    if digest in quarantined(tx):
        raise AdapterQuarantined(f"{name}@{digest} was taken out of service with its revision",
                                 mend="see GET /revisions")  # fmt: skip


def check_quarantine(state: State) -> None:
    """Returns when the state holds out of service what the log says, which was verified before.

    Raises:
        DigestMismatch: it does not.
    """
    with state.read() as tx:
        said = {digest for entry in tx.audit_of_kind(KIND) for digest in _brought(entry.body)}
        if said != quarantined(tx):
            raise DigestMismatch("what is in quarantine is not what the log says",
                                 mend="restore the state from a backup")  # fmt: skip


def _brought(body: dict[str, object]) -> list[str]:
    found = body["adapters"]
    return [str(digest) for digest in found] if isinstance(found, list) else []

"""The requests' lane of the log: every trace is a leaf of a Merkle tree, signed as it is written.

A trace that is amended later, by what came of its offer to teach, is a new leaf, which names the
earlier ones. Whoever kept a checkpoint finds every trace that was changed, removed or slipped in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cambium.core.canonical import canonical_json
from cambium.serve.log_head import root_of, sign_newest
from cambium.serve.store.records import TraceRow
from cambium.serve.store.state import State
from cambium.serve.store.transaction import Transaction
from cambium.trust.audit import REQUESTS, Checkpoint, log_broken, sign_checkpoint, to_text
from cambium.trust.keys import SigningKey
from cambium.trust.merkle import leaf_hash

FORGOTTEN = "requests.forgotten"


def log_requests(tx: Transaction, traces: Sequence[TraceRow], key: SigningKey) -> Checkpoint:
    """Adds the traces as they are now to the tree, and signs and keeps its new root.

    Raises:
        AuditBroken: what is there is not what was signed before.
    """
    size = newest_signed(tx, key).size
    earlier = tx.request_leaves([trace.request_id for trace in traces])
    leaves = {
        seq: leaf_of(seq, shown_trace(trace, earlier.get(trace.request_id, ())))
        for seq, trace in enumerate(traces, start=size + 1)
    }
    tree = tx.request_tree
    tree.extend(list(leaves.values()), size=size)
    names = [trace.request_id for trace in traces]
    tx.add_request_leaves(dict(zip(leaves, names, strict=True)))
    whole = size + len(leaves)
    checkpoint = sign_checkpoint(key, whole, root_of(tree, whole), REQUESTS)
    tx.put_request_checkpoint(checkpoint)
    return checkpoint


def newest_signed(tx: Transaction, key: SigningKey) -> Checkpoint:
    """Returns the checkpoint of the whole lane, which what is in the database still hashes to.

    Raises:
        AuditBroken: it does not, or is longer or shorter.
    """
    kept, tree = tx.request_checkpoint(), tx.request_tree
    size = kept.size if kept else 0
    if tree.size() != size:
        raise log_broken(size + 1, "the requests' tree is not as long as what was signed of it")
    # Ed25519 signs the same bytes the same way, so signing again verifies.
    signed = sign_checkpoint(key, size, root_of(tree, size), REQUESTS)
    if kept is not None and signed != kept:
        raise log_broken(size, "it is not the tree of requests that was signed")
    return signed


def forget_requests(
    state: State, key_in: Callable[[Transaction], SigningKey], *, before: int, now: int
) -> int:
    """Deletes traces from before a time, says so in the log, and returns how many went.

    Their leaves stay. Only the beginning of the lane goes, up to the first leaf of a trace that is
    kept, so that one number in the log says which traces may be gone.

    Args:
        key_in: says which key is the server's in a transaction.
        before, now: milliseconds since 1970, UTC.
    """
    with state.transaction() as tx:
        up_to = tx.oldest_leaf_from(before) - 1
        gone = tx.delete_traces(before=before, up_to=up_to)
        if gone:
            body: dict[str, object] = {"up_to": up_to, "before": before, "traces": gone}
            tx.audit(FORGOTTEN, body=body, at=now)
            sign_newest(tx, key_in(tx))
    return gone


def shown_trace(trace: TraceRow, earlier: Sequence[int]) -> dict[str, Any]:
    """Returns what a leaf is the hash of, but for its number."""
    return {
        "request_id": trace.request_id,
        "tenant": trace.tenant,
        "at": trace.at,
        "record": trace.record,
        "earlier": list(earlier),
    }


def leaf_of(seq: int, shown: Mapping[str, Any]) -> bytes:
    """Returns the leaf's hash.

    Raises:
        DataError: a value is not plain JSON.
    """
    names = ("request_id", "tenant", "at", "record", "earlier")
    said = {name: shown[name] for name in names}
    return leaf_hash(canonical_json({"type": "cambium/request/v1", "seq": seq, **said}))


def page_of(tx: Transaction, *, since: int, limit: int) -> list[dict[str, Any]]:
    """Returns the lane's leaves from number `since` on, each with its trace if it is the newest.

    A leaf whose trace was amended since has a hash and no content.
    """
    names = tx.requests_by_leaf(since=since, limit=limit)
    numbers, traces = tx.request_leaves(list(names.values())), tx.traces_of(list(names.values()))
    hashes = tx.request_tree.nodes({(0, seq - 1) for seq in names})
    page: list[dict[str, Any]] = []
    for seq, name in names.items():
        row: dict[str, Any] = {"seq": seq, "request_id": name, "hash": to_text(hashes[0, seq - 1])}
        if numbers[name][-1] == seq and name in traces:
            row |= shown_trace(traces[name], numbers[name][:-1])
        page.append(row)
    return page

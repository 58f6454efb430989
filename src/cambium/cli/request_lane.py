"""The requests' lane of the log, verified here and not where it was written."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from cambium.cli.client import Client
from cambium.cli.failures import NO, CommandFailed
from cambium.core.errors import CambiumError

if TYPE_CHECKING:
    from cambium.trust.audit import Checkpoint
    from cambium.trust.keys import PublicKey

_CONTENT = {"request_id", "tenant", "at", "record", "earlier"}


def verify_requests(
    rows: Iterable[dict[str, Any]],
    *,
    checkpoint: Checkpoint,
    server_public: PublicKey,
    forgotten: int = 0,
) -> int:
    """Returns how many leaves the checkpoint vouches for, each with its trace or amended since.

    Args:
        forgotten: up to which leaf the log of decisions says that old traces were deleted.

    Raises:
        AuditBroken: names the first leaf that does not hold, or whose trace is gone.
    """
    from cambium.trust.audit import REQUESTS, check_checkpoint, log_broken, to_bytes, to_text
    from cambium.trust.merkle import GrowingTree

    check_checkpoint(checkpoint, server_public, REQUESTS)
    tree, explained = GrowingTree(), set[int]()
    for seq, row in enumerate(rows, start=1):
        if row.get("seq") != seq:
            raise log_broken(seq, f"found number {row.get('seq')} instead")
        leaf = to_bytes(str(row.get("hash")))
        if row.keys() >= _CONTENT:
            if _leaf(seq, row) != leaf:
                raise log_broken(seq, "its trace is not what was logged")
            explained |= {seq, *row["earlier"]}
        # What was appended since says what was amended, and is not yet under the checkpoint.
        if seq <= checkpoint.size:
            tree.append(leaf)
    if tree.size != checkpoint.size or to_text(tree.root()) != checkpoint.root:
        raise log_broken(tree.size, "another history was signed")
    for seq in sorted(set(range(forgotten + 1, tree.size + 1)) - explained)[:1]:
        raise log_broken(seq, "its trace is gone")
    return tree.size


def verify_trace(client: Client, record: dict[str, Any], server_public: PublicKey) -> int:
    """Returns the number of a trace's leaf, which the server's checkpoint and proof vouch for.

    Raises:
        AuditBroken: they do not.
        CommandFailed: it is not in the tree yet, or never was.
    """
    from cambium.cli.record import built
    from cambium.trust.audit import REQUESTS, Checkpoint, check_checkpoint, log_broken, to_bytes
    from cambium.trust.merkle import is_included

    leaves = record.pop("leaves", [])
    if not leaves:
        line = "this trace is not in the requests' tree"
        raise CommandFailed(f"{line}: ask again in a second, or it is from before", status=NO)
    *earlier, seq = leaves
    at = record["at"]
    said = {name: value for name, value in record.items() if name != "at"}
    row = {"request_id": said.get("request_id"), "tenant": said.get("tenant"), "at": at,
           "record": said, "earlier": earlier}  # fmt: skip
    signed = built(Checkpoint, client.get("/audit/checkpoint", lane=REQUESTS))
    check_checkpoint(signed, server_public, REQUESTS)
    asked = client.get("/audit/proof", lane=REQUESTS, seq=seq, size=signed.size)
    steps = [to_bytes(str(step)) for step in asked.get("proof", [])]
    leaf = _leaf(seq, row)
    if leaf is None or not is_included(leaf, seq - 1, signed.size, steps, to_bytes(signed.root)):
        raise log_broken(seq, "the trace is not what was logged")
    return int(seq)


def _leaf(seq: int, row: dict[str, Any]) -> bytes | None:
    from cambium.serve.request_log import leaf_of

    try:
        return leaf_of(seq, row)
    except CambiumError:
        return None

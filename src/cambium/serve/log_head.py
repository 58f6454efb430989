"""The audit log's signed checkpoint, never over a history that forgets, and the log's proofs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from cambium.core.errors import DataError
from cambium.serve.store.state import State
from cambium.serve.store.transaction import Transaction
from cambium.serve.store.tree import Tree
from cambium.trust.audit import (
    AuditEntry,
    Checkpoint,
    grow,
    log_broken,
    sign_checkpoint,
    to_text,
    verify_log,
)
from cambium.trust.keys import PublicKey, SigningKey
from cambium.trust.merkle import GrowingTree, Node, consistency_proof, inclusion_proof, tree_root

PAGE = 1000
Folded = TypeVar("Folded")


def sign_newest(tx: Transaction, key: SigningKey) -> Checkpoint:
    """Signs and keeps a checkpoint of the whole log, which must extend the one signed before.

    What is signed is folded from the tree that was signed before and from the entries since, each
    hashed again: nodes or hashes that somebody changed in the database do not enter it.

    Raises:
        AuditBroken: the log was cut, or what was signed of it was rewritten.
    """
    before = tx.latest_checkpoint()
    size = before.size if before else 0
    if before is not None:
        root = root_of(tx.audit_tree, size)
        # Ed25519 signs the same bytes the same way, so signing again verifies.
        if sign_checkpoint(key, size, root) != before:
            raise log_broken(size, "it is not the tree that was signed")
    tree = GrowingTree(size, below=tx.audit_node)
    for entry in tx.audit_entries(since=size + 1):
        grow(tree, entry)
    if not 0 < tree.size == tx.audit_size():
        raise log_broken(max(tree.size, 1), "the entry is missing")
    checkpoint = sign_checkpoint(key, tree.size, tree.root())
    tx.put_checkpoint(checkpoint)
    return checkpoint


def check_log(state: State, server_public: PublicKey) -> int:
    """Returns how many entries the last checkpoint vouches for, each hashed again.

    Raises:
        AuditBroken: an entry that was signed is another one now, or gone.
    """
    with state.read() as tx:
        signed = tx.latest_checkpoint()
        if signed is None:
            return 0
        entries = (e for page in _pages(tx, signed.size) for e in page)
        return verify_log(entries, checkpoint=signed, server_public=server_public)


def _pages(tx: Transaction, size: int) -> Iterator[list[AuditEntry]]:
    for since in range(1, size + 1, PAGE):
        yield tx.audit_entries(since=since, limit=min(PAGE, size + 1 - since))


def root_of(tree: Tree, size: int) -> bytes:
    """Returns the root of the first `size` leaves, folded from what the database holds.

    Raises:
        AuditBroken: a node is missing.
    """
    return _folded(tree, lambda node: tree_root(size, node))


def prove_entry(tree: Tree, seq: int, size: int) -> dict[str, Any]:
    """Returns what leads from an entry to the root of the first `size` entries.

    Raises:
        DataError: the log has no such entry, or is shorter.
    """
    whole = tree.size()
    if not 1 <= seq <= size <= whole:
        raise DataError(
            f"entry {seq} of {size} is not in a log of {whole}",
            mend="ask for 1 <= seq <= size, and no more than the log holds",
        )

    def fold(node: Node) -> tuple[list[bytes], bytes]:
        return inclusion_proof(seq - 1, size, node), tree_root(size, node)

    return {"leaf_index": seq - 1, "tree_size": size, **_proved(*_folded(tree, fold))}


def prove_growth(tree: Tree, first: int, second: int) -> dict[str, Any]:
    """Returns what shows that the first `second` entries begin with the first `first`.

    Raises:
        DataError: the log is shorter, or the sizes are the wrong way round.
    """
    whole = tree.size()
    if not 0 <= first <= second <= whole:
        raise DataError(
            f"sizes {first} and {second} are not those of a log that grew to {whole}",
            mend="ask for first <= second, and no more than the log holds",
        )

    def fold(node: Node) -> tuple[list[bytes], bytes]:
        return consistency_proof(first, second, node), tree_root(second, node)

    return {"first": first, "second": second, **_proved(*_folded(tree, fold))}


def _proved(proof: list[bytes], root: bytes) -> dict[str, Any]:
    return {"root": to_text(root), "proof": [to_text(step) for step in proof]}


def _folded(tree: Tree, fold: Callable[[Node], Folded]) -> Folded:
    """Runs `fold` over the log's nodes, fetched together: a first run shows which it asks for."""
    wanted: set[tuple[int, int]] = set()

    def note(level: int, position: int) -> bytes:
        wanted.add((level, position))
        return bytes(32)

    fold(note)
    found = tree.nodes(wanted)
    return fold(lambda level, position: found[level, position])

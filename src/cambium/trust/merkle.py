"""Merkle trees as RFC 9162 section 2.1 defines them, over hashes that somebody else keeps.

A perfect subtree of 2^level leaves is a *node* at (level, position); once its last leaf is there
it never changes, so appending to a log writes each node once, and every root and proof is folded
from nodes. Leaves are counted from 0. What a stranger sends raises nothing: a proof holds or not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence

# Returns the hash of the perfect subtree at (level, position).
Node = Callable[[int, int], bytes]
EMPTY_ROOT = hashlib.sha256(b"").digest()


class GrowingTree:
    """A tree that grows in memory, on top of the nodes of its first `size` leaves elsewhere.

    It keeps only what its root and further leaves need: a logarithm of its size.
    """

    def __init__(self, size: int = 0, *, below: Node | None = None) -> None:
        self.size = size
        self._below = below
        self._fresh: dict[tuple[int, int], bytes] = {}

    def append(self, leaf: bytes) -> None:
        """Adds a leaf's hash."""
        for level, position, found in appended(leaf, self.size, self._node):
            self._fresh[level, position] = found
            for side in (0, 1):
                self._fresh.pop((level - 1, 2 * position + side), None)
        self.size += 1

    def root(self) -> bytes:
        """Returns the root of all leaves."""
        return tree_root(self.size, self._node)

    def _node(self, level: int, position: int) -> bytes:
        if self._below is None or (level, position) in self._fresh:
            return self._fresh[level, position]
        return self._below(level, position)


def leaf_hash(data: bytes) -> bytes:
    """Returns the 32 bytes of a leaf."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Returns the 32 bytes of an inner node; no leaf can have the same."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def appended(leaf: bytes, index: int, node: Node) -> Iterator[tuple[int, int, bytes]]:
    """Yields (level, position, hash) of the leaf and of each node that it completes."""
    level, position, found = 0, index, leaf
    yield level, position, found
    while position % 2:
        found = node_hash(node(level, position - 1), found)
        level, position = level + 1, position // 2
        yield level, position, found


def tree_root(size: int, node: Node) -> bytes:
    """Returns the root of the first `size` leaves."""
    return _root(0, size, node) if size else EMPTY_ROOT


def inclusion_proof(index: int, size: int, node: Node) -> list[bytes]:
    """Returns the path from leaf `index` to the root of the first `size` leaves; index < size."""
    path: list[bytes] = []
    low, high = 0, size
    while high - low > 1:
        middle = low + _split(high - low)
        if index < middle:
            path.append(_root(middle, high, node))
            high = middle
        else:
            path.append(_root(low, middle, node))
            low = middle
    return path[::-1]


def consistency_proof(first: int, second: int, node: Node) -> list[bytes]:
    """Returns what shows that the first `second` leaves begin with the first `first` of them.

    Empty where either is empty or both are the same; first <= second.
    """
    path: list[bytes] = []
    low, high, whole = 0, second, True
    while 0 < first != high:
        middle = low + _split(high - low)
        if first <= middle:
            path.append(_root(middle, high, node))
            high = middle
        else:
            path.append(_root(low, middle, node))
            low, whole = middle, False
    return [*([] if whole else [_root(low, high, node)]), *path[::-1]]


def is_included(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Returns whether `proof` leads from the leaf to the root (RFC 9162, 2.1.3.2)."""
    if not 0 <= index < size or len(proof) != sum(_steps(index, size)):
        return False
    return _folded(leaf, proof, index, size)[1] == root


def is_consistent(
    first: int, second: int, proof: Sequence[bytes], first_root: bytes, second_root: bytes
) -> bool:
    """Returns whether the tree of `second` leaves begins with that of `first` (2.1.4.2)."""
    if first == second or first == 0:
        start = first_root == (second_root if first else EMPTY_ROOT)
        return not proof and start and 0 <= first <= second
    if not 0 < first < second:
        return False
    # The path starts at the last perfect subtree of the first tree; where that is all of it, its
    # root is known and the proof leaves it out.
    level = (first & -first).bit_length() - 1
    steps = [first_root, *proof] if first == 1 << level else list(proof)
    index, size = (first >> level) - 1, ((second - 1) >> level) + 1
    if len(steps) != 1 + sum(_steps(index, size)):
        return False
    return _folded(steps[0], steps[1:], index, size) == (first_root, second_root)


def _steps(index: int, size: int) -> tuple[int, int]:
    """Returns how long a leaf's path is below where it meets the right edge, and along the edge."""
    below = (index ^ (size - 1)).bit_length()
    return below, (index >> below).bit_count()


def _folded(start: bytes, path: Sequence[bytes], index: int, size: int) -> tuple[bytes, bytes]:
    """Returns the roots of the tree that ends with leaf `index` and of the one of `size` leaves."""
    below, _ = _steps(index, size)
    old = new = start
    for level, step in enumerate(path):
        if level >= below or index >> level & 1:
            old, new = node_hash(step, old), node_hash(step, new)
        else:
            new = node_hash(new, step)
    return old, new


def _split(size: int) -> int:
    """Returns the largest power of two below `size`, which is 2 or more."""
    return 1 << ((size - 1).bit_length() - 1)


def _root(low: int, high: int, node: Node) -> bytes:
    size = high - low
    if size & (size - 1) == 0:
        level = size.bit_length() - 1
        return node(level, low >> level)
    middle = low + _split(size)
    return node_hash(_root(low, middle, node), _root(middle, high, node))

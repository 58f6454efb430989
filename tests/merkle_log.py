"""All nodes of a log's tree, written one append at a time."""

from __future__ import annotations

from collections.abc import Sequence

from cambium.trust.merkle import appended

Nodes = dict[tuple[int, int], bytes]


def nodes_of(leaves: Sequence[bytes]) -> Nodes:
    """Returns the hashes of all perfect subtrees by (level, position); none is written twice."""
    nodes: Nodes = {}

    def node(level: int, position: int) -> bytes:
        return nodes[level, position]

    for index, leaf in enumerate(leaves):
        for level, position, found in appended(leaf, index, node):
            assert (level, position) not in nodes
            nodes[level, position] = found
    return nodes

"""Oracles: the recursive definitions of RFC 9162, and the roots of the well-known test tree."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.merkle_log import nodes_of

from cambium.trust.merkle import (
    EMPTY_ROOT,
    GrowingTree,
    Node,
    consistency_proof,
    inclusion_proof,
    is_consistent,
    is_included,
    leaf_hash,
    node_hash,
    tree_root,
)

# Leaves and roots that Certificate Transparency's implementations test against.
KNOWN_LEAVES = ("", "00", "10", "2021", "3031", "40414243", "5051525354555657",
                "606162636465666768696a6b6c6d6e6f")  # fmt: skip
KNOWN_ROOTS = (
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)


def mth(leaves: list[bytes]) -> bytes:
    """MTH of RFC 9162, 2.1.1, over leaf hashes."""
    if not leaves:
        return EMPTY_ROOT
    if len(leaves) == 1:
        return leaves[0]
    k = split(len(leaves))
    return node_hash(mth(leaves[:k]), mth(leaves[k:]))


def path(m: int, leaves: list[bytes]) -> list[bytes]:
    """PATH of 2.1.3.1."""
    if len(leaves) == 1:
        return []
    k = split(len(leaves))
    if m < k:
        return [*path(m, leaves[:k]), mth(leaves[k:])]
    return [*path(m - k, leaves[k:]), mth(leaves[:k])]


def subproof(m: int, leaves: list[bytes], whole: bool) -> list[bytes]:
    """SUBPROOF of 2.1.4.1."""
    if m == len(leaves):
        return [] if whole else [mth(leaves)]
    k = split(len(leaves))
    if m <= k:
        return [*subproof(m, leaves[:k], whole), mth(leaves[k:])]
    return [*subproof(m - k, leaves[k:], False), mth(leaves[:k])]


def split(n: int) -> int:
    k = 1
    while 2 * k < n:
        k *= 2
    return k


def leaves_of(number: int) -> list[bytes]:
    return [leaf_hash(str(i).encode()) for i in range(number)]


def grown(leaves: list[bytes]) -> Node:
    nodes = nodes_of(leaves)
    return lambda level, position: nodes[level, position]


SIZE = 40
LEAVES = leaves_of(SIZE)
NODE = grown(LEAVES)


def test_the_known_tree_has_its_known_roots() -> None:
    leaves = [leaf_hash(bytes.fromhex(text)) for text in KNOWN_LEAVES]
    node = grown(leaves)
    assert [tree_root(n, node).hex() for n in range(1, 9)] == list(KNOWN_ROOTS)
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert tree_root(0, node).hex() == empty


def test_roots_and_proofs_are_those_of_the_definitions() -> None:
    for size in range(1, SIZE + 1):
        root = mth(LEAVES[:size])
        assert tree_root(size, NODE) == root
        for index in range(size):
            proof = inclusion_proof(index, size, NODE)
            assert proof == path(index, LEAVES[:size])
            assert is_included(LEAVES[index], index, size, proof, root)
        for first in range(1, size + 1):
            proof = consistency_proof(first, size, NODE)
            assert proof == subproof(first, LEAVES[:size], True)
            assert is_consistent(first, size, proof, mth(LEAVES[:first]), root)
        assert is_consistent(0, size, consistency_proof(0, size, NODE), EMPTY_ROOT, root)


def test_a_tree_in_memory_grows_on_what_lies_elsewhere() -> None:
    for size in range(SIZE):
        tree = GrowingTree(size, below=grown(LEAVES[:size]))
        for number, leaf in enumerate(LEAVES[size:], size + 1):
            tree.append(leaf)
            assert tree.root() == mth(LEAVES[:number])
            assert len(tree._fresh) <= number.bit_length()
    assert GrowingTree().root() == EMPTY_ROOT


def test_a_wrong_leaf_place_size_or_root_is_not_included() -> None:
    for size in range(1, 20):
        root = tree_root(size, NODE)
        for index in range(size):
            proof = inclusion_proof(index, size, NODE)
            wrong = [
                (leaf_hash(b"x"), index, size, proof, root),
                (LEAVES[index], size, size, proof, root),
                (LEAVES[index], -1, size, proof, root),
                (LEAVES[index], index, size, [*proof, root], root),
                (LEAVES[index], index, size, proof, leaf_hash(b"x")),
                *((LEAVES[index], i, size, proof, root) for i in range(size) if i != index),
                *((LEAVES[index], index, size, proof[:i], root) for i in range(len(proof))),
            ]
            assert not any(is_included(*case) for case in wrong)


def test_a_fork_is_never_consistent() -> None:
    """Whatever proof comes: of either history, cut, lengthened or with hashes changed."""
    tried = 0
    for second in range(2, 24):
        for first in range(1, second):
            forked = [*LEAVES[: first - 1], leaf_hash(b"fork"), *LEAVES[first:second]]
            honest = consistency_proof(first, second, NODE)
            of_fork = consistency_proof(first, second, grown(forked))
            old, new = tree_root(first, NODE), mth(forked)
            proofs = [honest, of_fork, [], honest[1:], honest[:-1], [*honest, new]]
            proofs += [[*honest[:i], leaf_hash(b"y"), *honest[i + 1 :]] for i in range(len(honest))]
            for proof in proofs:
                assert not is_consistent(first, second, proof, old, new)
                tried += 1
            assert not is_consistent(second, first, honest, new, old)
            assert not is_consistent(first, first, [], old, new)
            assert not is_consistent(0, second, honest, EMPTY_ROOT, new)
            assert not is_consistent(0, second, [], old, new)
    assert tried > 2000


@given(size=st.integers(1, 300), pick=st.randoms(use_true_random=False))
def test_mutated_proofs_do_not_hold(size: int, pick: random.Random) -> None:
    leaves = leaves_of(size)
    node = grown(leaves)
    index, first = pick.randrange(size), pick.randrange(1, size + 1)
    root = tree_root(size, node)
    inclusion = inclusion_proof(index, size, node)
    consistency = consistency_proof(first, size, node)
    assert is_included(leaves[index], index, size, inclusion, root)
    assert is_consistent(first, size, consistency, tree_root(first, node), root)
    assert not is_included(leaves[index], index, size, mutated(inclusion, pick), root)
    assert not is_consistent(first, size, mutated(consistency, pick), tree_root(first, node), root)


def mutated(proof: list[bytes], pick: random.Random) -> list[bytes]:
    if not proof or pick.random() < 0.2:
        return [*proof, leaf_hash(b"more")]
    at = pick.randrange(len(proof))
    changed = bytearray(proof[at])
    changed[pick.randrange(32)] ^= 1 << pick.randrange(8)
    return [*proof[:at], bytes(changed), *proof[at + 1 :]]


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_appending_writes_each_node_once_and_two_for_a_leaf_at_most(size: int) -> None:
    assert len(nodes_of(leaves_of(size))) < 2 * size

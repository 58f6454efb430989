"""`kill -9` of a process that writes to a state, at named points and at random.

A program of its own (`python -m cambium.bench.trust_crash FOLDER`), because it forks: it imports
no tensors and has no threads. It prints how many records were acknowledged and how many are lost.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

from cambium.core.canonical import digest_bytes
from cambium.serve.adapter_states import AdapterState
from cambium.serve.store.records import AdapterRecord
from cambium.serve.store.state import State
from cambium.trust.audit import grow
from cambium.trust.merkle import GrowingTree, tree_root

POINTS = ("before the blob", "after the blob", "after the row", "after the log entry", "committed")
ROUNDS_EACH = 20
RANDOM_ROUNDS = 100
Reached = Callable[[str], None]


def main() -> None:
    """Kills a writer again and again on one state, and looks each time at what is there."""
    folder = Path(sys.argv[1])
    if len(sys.argv) > 2:  # the folder then belongs to that database
        State.open(folder, url=sys.argv[2]).close()
    rounds: list[str | None] = [p for p in POINTS for _ in range(ROUNDS_EACH)]
    rounds += [None] * RANDOM_ROUNDS
    acknowledged: dict[str, str] = {}
    lost = halves = 0
    for number, point in enumerate(rounds):
        acknowledged |= _killed(folder, number, point)
        missing, torn = _look(folder, acknowledged)
        lost, halves = lost + missing, halves + torn
    print(len(rounds), len(acknowledged), lost, halves)


def _killed(folder: Path, seed: int, point: str | None) -> dict[str, str]:
    """Forks a writer that dies at the point, or is killed at a random moment."""
    pick = random.Random(seed)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _write_on(folder, seed, writing, _dies_at(point, pick.randrange(1, 4)))
    os.close(writing)
    with os.fdopen(reading, "rb") as said:
        if point is None:
            said.readline()  # it is open
            time.sleep(pick.random() * 0.05)
            os.kill(child, signal.SIGKILL)
        lines = said.readlines()
    os.waitpid(child, 0)
    whole = [line.decode().split() for line in lines if line.endswith(b"\n")]
    return {parts[0]: parts[1] for parts in whole if len(parts) == 2}


def _dies_at(point: str | None, time_of_it: int) -> Reached:
    left = time_of_it

    def reached(where: str) -> None:
        nonlocal left
        left -= where == point
        if left == 0 and where == point:
            os.kill(os.getpid(), signal.SIGKILL)

    return reached


def _write_on(folder: Path, seed: int, out: int, reached: Reached) -> None:
    pick = random.Random(seed)
    with State.open(folder) as state:
        os.write(out, b"open\n")
        for n in count():
            name, data = f"a-{seed}-{n}", pick.randbytes(pick.randrange(1, 60_000))
            reached("before the blob")
            digest = state.blobs.put(data)
            reached("after the blob")
            with state.transaction() as tx:
                tx.put_adapter(AdapterRecord(
                    name=name, digest=digest, state=AdapterState.EPHEMERAL, tenant="t",
                    domain=None, scope="text", config_json="{}", parent_revision=1, created_at=1,
                    expires_at=None, weights_blob=digest,
                ))  # fmt: skip
                reached("after the row")
                tx.audit("learn", body={"adapter": name, "v": tx.bump_state_version()}, at=1)
                reached("after the log entry")
            reached("committed")
            os.write(out, f"{name} {digest}\n".encode())


def _look(folder: Path, acknowledged: dict[str, str]) -> tuple[int, int]:
    """Returns how many acknowledged records are gone, and whether anything is half there."""
    with State.open(folder) as state, state.read() as tx:
        there = {a.name: a.digest for a in tx.list_adapters()}
        lost = sum(there.get(name) != digest for name, digest in acknowledged.items())
        tree = GrowingTree()
        for entry in tx.audit_entries():
            grow(tree, entry)
        whole = (
            tree.size == len(there) == tx.state_version() == tx.audit_size()
            and (not tree.size or tree_root(tree.size, tx.audit_node) == tree.root())
            and all(digest_bytes(state.blobs.get(d)) == d for d in there.values())
        )
    return lost, int(not whole)


if __name__ == "__main__":
    main()

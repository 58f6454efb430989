"""`kill -9` at any time: what was acknowledged is there, whole; what was not is absent, whole.

A killed process leaves the kernel's caches behind it, so this is no test of power loss.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cambium.serve.store.state import State
from cambium.trust.audit import grow
from cambium.trust.merkle import GrowingTree, tree_root

WRITER = Path(__file__).with_name("store_writer.py")
NUM_FROM_OUTSIDE = 12
NUM_FROM_INSIDE = 14


def start(folder: Path, *more: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(WRITER), str(folder), *map(str, more)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def acknowledged(lines: list[bytes]) -> dict[str, str]:
    whole = [line for line in lines if line.endswith(b"\n")]
    assert whole and whole[0] == b"open\n"
    return dict(line.decode().split() for line in whole[1:])


def killed_from_outside(folder: Path, seed: int) -> dict[str, str]:
    """Kills the writer a moment after some acknowledgement, wherever it then is."""
    rng = random.Random(seed)
    with start(folder, seed) as writer:
        assert writer.stdout is not None
        lines = [writer.stdout.readline() for _ in range(1 + rng.randrange(0, 12))]
        threading.Event().wait(rng.random() * 0.02)  # a moment of the round, not a wait for it
        writer.send_signal(signal.SIGKILL)
        lines += writer.stdout.readlines()
    assert writer.returncode == -signal.SIGKILL
    return acknowledged(lines)


def killed_from_inside(folder: Path, seed: int) -> dict[str, str]:
    """Lets the writer kill itself at a function call drawn from the first few records."""
    calls = random.Random(seed).randrange(1, 12_000)
    with start(folder, seed, calls) as writer:
        out, err = writer.communicate()
    assert writer.returncode == -signal.SIGKILL, err.decode()
    return acknowledged(out.splitlines(keepends=True))


def check(folder: Path, expected: dict[str, str], *, rounds: int) -> None:
    """Checks that the state holds the acknowledged records, one more a round at most, whole."""
    with State.open(folder) as state, state.read() as view:
        adapters = {a.name: a for a in view.list_adapters()}
        for name, digest in expected.items():
            assert adapters[name].digest == digest
        assert len(expected) <= len(adapters) <= len(expected) + rounds
        for name, adapter in adapters.items():
            blob = adapter.weights_blob
            assert blob == adapter.digest and state.blobs.get(blob)
            assert len(view.list_learn_steps(name)) == 1
            assert [e.blob for e in view.list_examples(name)] == [blob]
        entries = view.audit_entries()
        tree = GrowingTree()
        for entry in entries:
            grow(tree, entry)
        number = len(entries)
        assert number == view.state_version() == len(adapters)
        if number:  # the nodes were written with the entries, all or none
            assert tree_root(number, view.audit_node) == tree.root()
        assert [e.body["version"] for e in entries] == list(range(1, number + 1))
        assert {e.body["adapter"] for e in entries} == set(adapters)
    for digest in state.blobs.digests():
        assert state.blobs.get(digest)
    assert not list(folder.rglob(".partial-*"))


def test_nothing_acknowledged_is_lost_and_nothing_is_half(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    expected: dict[str, str] = {}
    kills = [killed_from_outside] * NUM_FROM_OUTSIDE + [killed_from_inside] * NUM_FROM_INSIDE
    random.Random(0).shuffle(kills)
    for rounds, kill in enumerate(kills, start=1):
        expected |= kill(folder, rounds)
        check(folder, expected, rounds=rounds)
    assert len(kills) >= 20
    assert len(expected) > len(kills)
    with State.open(folder) as state:
        named = len({a.weights_blob for a in _adapters(state)})
        state.sweep_blobs(grace_s=0)
        assert len(list(state.blobs.digests())) == named
    check(folder, expected, rounds=len(kills))


def test_the_check_sees_a_loss(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    expected = killed_from_outside(folder, 3)
    check(folder, expected, rounds=1)
    with pytest.raises(KeyError):
        check(folder, expected | {"never": "written"}, rounds=1)
    with State.open(folder) as state, state.transaction() as tx:
        tx.delete_examples(next(iter(expected)))
    with pytest.raises(AssertionError):
        check(folder, expected, rounds=1)


def _adapters(state: State) -> list:
    with state.read() as view:
        return view.list_adapters()

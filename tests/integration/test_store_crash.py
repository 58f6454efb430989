"""`kill -9` at any time: what was acknowledged is there, whole; what was not is absent, whole.

A killed process leaves the kernel's caches behind it, so this is no test of power loss.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest

from cambium.serve.store.state import State
from cambium.trust.audit import grow
from cambium.trust.merkle import GrowingTree, tree_root

WRITER = Path(__file__).with_name("store_writer.py")
NUM_FROM_OUTSIDE = 12
NUM_FROM_INSIDE = 14


@dataclass(kw_only=True)
class Writers:
    """Writers to one folder, one after the other, forked by a process that has loaded the code."""

    process: subprocess.Popen[bytes]

    def start(self, *order: int) -> tuple[IO[bytes], int]:
        """Returns what the next writer says, after its first line, and its process."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(" ".join(map(str, order)).encode() + b"\n")
        self.process.stdin.flush()
        opened, pid = self.process.stdout.readline().split()
        assert opened == b"open"
        return self.process.stdout, int(pid)

    def from_outside(self, seed: int) -> dict[str, str]:
        """Kills the writer a moment after some acknowledgement, wherever it then is."""
        rng = random.Random(seed)
        said, pid = self.start(seed)
        try:
            lines = [said.readline() for _ in range(rng.randrange(0, 12))]
            threading.Event().wait(rng.random() * 0.02)  # a moment of the round, not a wait for it
        finally:
            os.kill(pid, signal.SIGKILL)
        return acknowledged([*lines, *rest(said)])

    def from_inside(self, seed: int) -> dict[str, str]:
        """Lets the writer kill itself at a function call drawn from the first few records."""
        calls = random.Random(seed).randrange(1, 12_000)
        said, _ = self.start(seed, calls)
        return acknowledged(rest(said))


def rest(said: IO[bytes]) -> list[bytes]:
    """Returns what a writer still said before it was killed."""
    lines = []
    while not (line := said.readline()).startswith(b"ended "):
        assert line
        lines.append(line)
    assert line == f"ended {int(signal.SIGKILL)}\n".encode()
    return lines


def acknowledged(lines: list[bytes]) -> dict[str, str]:
    return dict(line.decode().split() for line in lines)


@pytest.fixture
def writers(tmp_path: Path) -> Iterator[Writers]:
    command = [sys.executable, str(WRITER), str(tmp_path / "state")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield Writers(process=process)


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


def test_nothing_acknowledged_is_lost_and_nothing_is_half(writers: Writers, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    expected: dict[str, str] = {}
    kills = [writers.from_outside] * NUM_FROM_OUTSIDE + [writers.from_inside] * NUM_FROM_INSIDE
    random.Random(0).shuffle(kills)
    for rounds, kill in enumerate(kills, start=1):
        expected |= kill(rounds)
        check(folder, expected, rounds=rounds)
    assert len(kills) >= 20
    assert len(expected) > len(kills)
    with State.open(folder) as state:
        named = len({a.weights_blob for a in _adapters(state)})
        state.sweep_blobs(grace_s=0)
        assert len(list(state.blobs.digests())) == named
    check(folder, expected, rounds=len(kills))


def test_the_check_sees_a_loss(writers: Writers, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    expected = writers.from_outside(3)
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

"""Writes records to a state and says so, until it is killed: the child of `test_store_crash`.

`store_writer.py FOLDER` forks a writer for every line `SEED [CALLS]` on standard input, and says
`ended STATUS` when that has ended: with CALLS it kills itself at that function call, counted from
the second record on; without, it waits to be killed.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from itertools import count
from pathlib import Path
from types import FrameType

from cambium.core.canonical import digest_bytes
from cambium.serve.adapter_states import AdapterState
from cambium.serve.store.records import AdapterRecord, ExampleRecord, LearnRecord
from cambium.serve.store.state import State


def write_one(state: State, *, name: str, data: bytes) -> None:
    """Writes the blob, then every row that tells of it, then the log, in one transaction."""
    digest = state.blobs.put(data)
    with state.transaction() as tx:
        tx.put_adapter(AdapterRecord(
            name=name, digest=digest, state=AdapterState.EPHEMERAL, tenant="t", domain=None,
            scope="text", config_json="{}", parent_revision=1, created_at=1, expires_at=None,
            weights_blob=digest,
        ))  # fmt: skip
        tx.add_learn_step(LearnRecord(
            adapter=name, at=1, digest_before=digest, digest_after=digest, losses=(1.5,), steps=1,
            num_examples=1, consent="training", source=None,
        ))  # fmt: skip
        tx.add_example(ExampleRecord(
            adapter=name, digest=digest_bytes(name.encode()), blob=digest, kind="text",
            source=None, consent="training", at=1,
        ))  # fmt: skip
        tx.audit("learn", body={"adapter": name, "version": tx.bump_state_version()}, at=1)


def die_after(calls: int) -> None:
    """Kills this process at the given function call, in Python or in C."""
    left = calls

    def on_call(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal left
        left -= event in ("call", "c_call")
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(on_call)


def write_on(folder: Path, seed: int, calls: int | None) -> None:
    """Acknowledges each record with one line on standard output once it is committed."""
    rng = random.Random(seed)
    with State.open(folder) as state:
        os.write(1, f"open {os.getpid()}\n".encode())
        for n in count():
            if n == 1 and calls is not None:  # the first one mostly compiles statements
                die_after(calls)
            name = f"a-{seed}-{n}"
            data = rng.randbytes(rng.randrange(1, 60_000))
            write_one(state, name=name, data=data)
            os.write(1, f"{name} {digest_bytes(data)}\n".encode())


def main() -> None:
    """Lets one writer after another live; has no threads and opens nothing, so it can fork."""
    folder = Path(sys.argv[1])
    for line in sys.stdin:
        seed, *calls = map(int, line.split())
        pid = os.fork()
        if pid == 0:
            write_on(folder, seed, calls[0] if calls else None)
        _, status = os.waitpid(pid, 0)
        os.write(1, f"ended {status}\n".encode())


if __name__ == "__main__":
    main()

"""A full disk: a clear error, nothing changed, and writing again once there is room."""

from __future__ import annotations

import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from cambium.serve.errors import StorageFull
from cambium.serve.store.records import TraceRow
from cambium.serve.store.state import State

ROOM = 24 * 1024
BIG = bytes(range(256)) * 2048  # 512 KiB: more than the room

Full = Callable[[Path], AbstractContextManager[None]]


@contextmanager
def filled(disk: Path) -> Iterator[None]:
    """Leaves `ROOM` bytes on a small disk of its own."""
    filler = disk / "filler"
    filler.write_bytes(b"\0" * (shutil.disk_usage(disk).free - ROOM))
    yield
    filler.unlink()


@contextmanager
def limited(disk: Path) -> Iterator[None]:
    """Lets no file grow `ROOM` bytes beyond the longest that there is."""
    longest = max(path.stat().st_size for path in disk.rglob("*") if path.is_file())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (longest + ROOM, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


@pytest.fixture(params=["disk", "limit"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, Full]]:
    """Gives a folder and what makes its disk full; a limit where no disk can be mounted."""
    if request.param == "limit":
        yield tmp_path, limited
        return
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(tmp_path)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        yield tmp_path, limited
        return
    yield tmp_path, filled
    subprocess.run(["umount", str(tmp_path)], check=True)


def trace(name: str, *, size: int) -> TraceRow:
    return TraceRow(request_id=name, at=1, record={"text": "x" * size})


def test_a_blob_that_does_not_fit_leaves_no_trace(disk: tuple[Path, Full]) -> None:
    folder, full = disk
    with State.open(folder / "state") as state:
        kept = state.blobs.put(b"kept")
        with full(folder):
            for _ in range(3):
                with pytest.raises(StorageFull):
                    state.blobs.put(BIG)
            assert list(state.blobs.digests()) == [kept]
            assert not list(folder.rglob(".partial-*"))
            assert state.blobs.get(kept) == b"kept"
        assert state.blobs.get(state.blobs.put(BIG)) == BIG


def test_a_row_that_does_not_fit_changes_nothing(disk: tuple[Path, Full]) -> None:
    folder, full = disk
    with State.open(folder / "state") as state:
        with state.transaction() as tx:
            tx.put_trace(trace("before", size=10))
            tx.audit("answer", body={}, at=1)
        with full(folder):
            for n in range(3):
                with pytest.raises(StorageFull), state.transaction() as tx:
                    tx.bump_state_version()
                    tx.audit("answer", body={}, at=2)
                    tx.put_trace(trace(f"big-{n}", size=len(BIG)))
            with state.read() as view:
                assert view.get_trace("before") == trace("before", size=10)
                assert view.state_version() == 0
                assert len(view.audit_entries()) == 1
        with state.transaction() as tx:
            tx.put_trace(trace("after", size=len(BIG)))
            tx.audit("answer", body={}, at=3)
    with State.open(folder / "state") as state, state.read() as view:
        assert view.get_trace("after") == trace("after", size=len(BIG))
        assert [entry.at for entry in view.audit_entries()] == [1, 3]


def test_small_writes_until_the_disk_is_full_keep_all_that_was_acknowledged(
    disk: tuple[Path, Full],
) -> None:
    folder, full = disk
    acknowledged: list[str] = []
    with State.open(folder / "state") as state:
        with full(folder), pytest.raises(StorageFull):
            for n in range(2000):
                with state.transaction() as tx:
                    tx.put_trace(trace(f"t-{n}", size=1500))
                acknowledged.append(f"t-{n}")
        assert acknowledged
        with state.read() as view:
            for name in acknowledged:
                assert view.get_trace(name) == trace(name, size=1500)
        with state.transaction() as tx:
            tx.put_trace(trace("after", size=1500))


def test_a_state_that_cannot_be_made_says_so(disk: tuple[Path, Full]) -> None:
    folder, full = disk
    (folder / "something").write_bytes(b"x")
    with full(folder), pytest.raises(StorageFull):
        State.open(folder / "state")
    State.open(folder / "state").close()

"""Who holds a state folder: one process alone, or several that share its database.

Locks are files that the kernel releases when their holder dies. `DIR/lock` is held by one process
alone, or shared; whoever shares it also holds a `DIR/lock.N` of its own. What it holds alone says
its process id, and whether it has obeyed the order to kill.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cambium.serve.errors import StateLocked

LOCK_FILE = "lock"
MAX_PROCESSES = 64
_OBEYED = "killed"


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A living process that holds the folder; `obeyed` once the order to kill is in force there."""

    pid: int
    obeyed: bool


def lock_holders(folder: Path) -> list[Holder]:
    """Returns the processes that hold the folder now."""
    found = (_holder(path) for path in _paths(folder))
    return [holder for holder in found if holder is not None]


class FolderLock:
    """A hold on a folder, and a note of who has it."""

    def __init__(self, folder: Path, *, shared: bool = False) -> None:
        """Takes the folder, at once or not at all.

        Raises:
            StateLocked: another process, named in the message, holds it.
        """
        self._folder = folder
        # Never unlinked: another process could then lock a file that has no name any more.
        self._door = _opened(folder / LOCK_FILE)
        self._own = self._door
        try:
            fcntl.flock(self._door, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            if shared:
                self._own = _first_free(folder)
            self.note(obeyed=False)
        except BlockingIOError as error:
            os.close(self._door)
            holders = ", ".join(str(holder.pid) for holder in lock_holders(folder))
            raise StateLocked(
                f"the state folder is held by process {holders or 'unknown'}",
                mend="talk to the running server, or stop it first",
            ) from error
        except BaseException:
            os.close(self._door)
            raise

    def share(self) -> None:
        """Lets others in who share the folder; what must be done alone is done."""
        if self._own == self._door:
            self._own = _first_free(self._folder)
            self.note(obeyed=False)
            fcntl.flock(self._door, fcntl.LOCK_SH)

    def note(self, *, obeyed: bool) -> None:
        """Says who holds this, and whether it has obeyed the order to kill."""
        text = f"{os.getpid()} {_OBEYED if obeyed else ''}"
        os.pwrite(self._own, f"{text:<31}\n".encode(), 0)  # of one length: never half there

    def release(self) -> None:
        """Lets the next process in."""
        for descriptor in {self._own, self._door}:
            os.close(descriptor)


def _first_free(folder: Path) -> int:
    for path in _paths(folder)[1:]:
        descriptor = _opened(path)
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        os.close(descriptor)
    raise StateLocked(f"{MAX_PROCESSES} processes serve this state, as many as may",
                      mend="stop one of them")  # fmt: skip


def _paths(folder: Path) -> list[Path]:
    return [folder / LOCK_FILE, *(folder / f"{LOCK_FILE}.{n}" for n in range(MAX_PROCESSES))]


def _opened(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _holder(path: Path) -> Holder | None:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        # Where others share the door too, nobody holds it alone.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        pid, _, said = os.pread(descriptor, 64, 0).decode("ascii", "replace").strip().partition(" ")
        return Holder(pid=int(pid), obeyed=said == _OBEYED) if pid.isdigit() else None
    finally:
        os.close(descriptor)
    return None

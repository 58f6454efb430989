"""One process at a time: a lock file that the kernel releases when its holder dies."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from cambium.serve.errors import StateLocked


def lock_holder(path: Path) -> int | None:
    """Returns the process id of who holds the lock, or None if nobody does."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
        return int(text) if text.isdigit() else None
    else:
        return None
    finally:
        os.close(descriptor)


class FolderLock:
    """An exclusive `flock` on a file that also names its holder's process id."""

    def __init__(self, path: Path) -> None:
        """Takes the lock, at once or not at all.

        Raises:
            StateLocked: another process, named in the message, holds it.
        """
        # Never unlinked: another process could then lock a file that has no name any more.
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, b"%d\n" % os.getpid(), 0)
        except BlockingIOError as error:
            holder = os.pread(self._descriptor, 32, 0).decode("ascii", "replace").strip()
            os.close(self._descriptor)
            raise StateLocked(
                f"the state folder is held by process {holder or 'unknown'}",
                mend="talk to the running server, or stop it first",
            ) from error
        except BaseException:
            os.close(self._descriptor)
            raise

    def release(self) -> None:
        """Lets the next process in."""
        os.close(self._descriptor)

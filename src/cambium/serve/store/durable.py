"""Files and folders that are on disk, names included, when the call returns."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

# What an interrupted write leaves begins so.
PARTIAL = ".partial-"


def write_durably(path: Path, data: bytes, *, once: bool = False) -> None:
    """Puts a file there whole, for its owner alone; it and its name are on disk then.

    Args:
        once: leaves what is there, also what another process has put there meanwhile.
    """
    partial = path.with_name(PARTIAL + secrets.token_hex(8))
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if once:
            with suppress(FileExistsError):
                os.link(partial, path)
            partial.unlink()
        else:
            os.rename(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def make_durable_folder(folder: Path) -> None:
    """Makes the folder and its parents, each fsynced into its own parent."""
    missing = [f for f in (folder, *folder.parents) if not f.exists()]
    for new in reversed(missing):
        new.mkdir(mode=0o700, exist_ok=True)
        fsync_folder(new.parent)


def fsync_folder(folder: Path) -> None:
    """Puts the names in a folder on disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Blobs in files named by the digest of their bytes."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from cambium.core.canonical import digest_bytes, is_digest
from cambium.core.errors import DataError
from cambium.serve.errors import StateCorrupt
from cambium.serve.store.durable import PARTIAL, fsync_folder, make_durable_folder, write_durably
from cambium.serve.store.failures import known_errors

_ALGORITHM = "sha256"
_GRACE_S = 60.0
# What an interrupted write left, where others may be writing.
_PARTIAL_GRACE_S = 3600.0


class BlobStore:
    """Files under `FOLDER/sha256/ab/<64 hex digits>`, each complete, durable and never rewritten.

    A digest that `put` returned survives power loss. Safe for threads, and for processes that
    share the folder. A file's time is when it was last put.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, data: bytes) -> str:
        """Returns the digest of `data`, which is on disk and fsynced when this returns.

        Raises:
            StorageFull: the disk took no more; no partial file is left.
            StateCorrupt: a file of this name holds other bytes.
        """
        digest = digest_bytes(data)
        path = self._path(digest)
        with known_errors():
            make_durable_folder(path.parent)
            with self._door(fcntl.LOCK_SH):
                is_there = path.exists()
                if is_there:
                    os.utime(path)  # no sweep takes it before the row that names it is written
            if is_there:
                self.get(digest)
                fsync_folder(path.parent)  # its writer may not have come this far
            else:
                write_durably(path, data)
        return digest

    def put_all(self, data: Sequence[bytes]) -> list[str]:
        """Returns the digests of all, which wait for the disk together; as `put`."""
        with ThreadPoolExecutor(len(data)) as threads:
            return list(threads.map(self.put, data))

    def get(self, digest: str) -> bytes:
        """Returns the bytes of this digest, hashed again.

        Raises:
            StateCorrupt: no such blob, or its bytes hash to something else.
            DataError: `digest` is not a digest.
        """
        try:
            data = self._path(digest).read_bytes()
        except FileNotFoundError as error:
            raise StateCorrupt(
                f"the blob {digest} is missing", mend="restore the state folder from a backup"
            ) from error
        if digest_bytes(data) != digest:
            raise StateCorrupt(
                f"the blob {digest} holds other bytes",
                mend="restore the state folder from a backup",
            )
        return data

    def has(self, digest: str) -> bool:
        """Returns whether there is a file of this name; `get` says whether it is sound.

        Raises:
            DataError: `digest` is not a digest.
        """
        return self._path(digest).is_file()

    def digests(self) -> Iterator[str]:
        """Yields the digest of every blob."""
        for path in self._folder.glob(f"{_ALGORITHM}/??/*"):
            digest = f"{_ALGORITHM}:{path.name}"
            if is_digest(digest):
                yield digest

    def delete_unreferenced(self, keep: set[str], *, grace_s: float = _GRACE_S) -> int:
        """Deletes every blob outside `keep` and returns how many.

        Spares what was put in the last `grace_s` seconds, by any process: the row that names it
        may not be written yet.
        """
        unnamed = [self._path(digest) for digest in self.digests() if digest not in keep]
        if not unnamed:
            return 0
        with self._door(fcntl.LOCK_EX):
            gone = _older(unnamed, grace_s)
            for path in gone:
                path.unlink(missing_ok=True)
        for folder in {path.parent for path in gone}:
            fsync_folder(folder)
        return len(gone)

    def delete_partial(self, *, is_alone: bool = True) -> int:
        """Deletes what interrupted writes left, and returns how many files.

        Only for a process that has just opened the state: it would break a running `put`. Where
        others write too, only what is too old to be theirs.
        """
        partial = list(self._folder.glob(f"{_ALGORITHM}/??/{PARTIAL}*"))
        partial = partial if is_alone else _older(partial, _PARTIAL_GRACE_S)
        for path in partial:
            path.unlink(missing_ok=True)
        return len(partial)

    @contextmanager
    def _door(self, how: int) -> Iterator[None]:
        """Lets putters in together, and a sweep alone, whichever processes they are of."""
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, how)
            yield
        finally:
            os.close(descriptor)

    def _path(self, digest: str) -> Path:
        if not is_digest(digest):  # also what keeps every path inside the folder
            raise DataError(
                f"{digest!r:.100} is not a digest", mend="use sha256: and 64 hex digits"
            )
        name = digest.removeprefix(f"{_ALGORITHM}:")
        return self._folder / _ALGORITHM / name[:2] / name


def _older(paths: list[Path], age_s: float) -> list[Path]:
    """Returns the files that were last put longer ago; those that are gone meanwhile are not."""
    oldest, found = time.time() - age_s, list[Path]()
    for path in paths:
        with suppress(FileNotFoundError):
            if path.stat().st_mtime <= oldest:
                found.append(path)
    return found

"""Blobs in files named by the digest of their bytes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cambium.core.canonical import digest_bytes, is_digest
from cambium.core.errors import DataError
from cambium.serve.errors import StateCorrupt
from cambium.serve.store.durable import PARTIAL, fsync_folder, make_durable_folder, write_durably
from cambium.serve.store.failures import known_errors

_ALGORITHM = "sha256"
_GRACE_S = 60.0


class BlobStore:
    """Files under `FOLDER/sha256/ab/<64 hex digits>`, each complete, durable and never rewritten.

    A digest that `put` returned survives power loss. Safe for threads of one process.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._put_at: dict[str, float] = {}
        self._lock = threading.Lock()

    def put(self, data: bytes) -> str:
        """Returns the digest of `data`, which is on disk and fsynced when this returns.

        Raises:
            StorageFull: the disk took no more; no partial file is left.
            StateCorrupt: a file of this name holds other bytes.
        """
        digest = digest_bytes(data)
        path = self._path(digest)
        with self._lock:
            self._put_at[digest] = time.monotonic()
        with known_errors():
            make_durable_folder(path.parent)
            if path.exists():
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

        Spares what this process put in the last `grace_s` seconds: the row that names it may
        not be written yet.
        """
        with self._lock:
            oldest = time.monotonic() - grace_s
            self._put_at = {name: at for name, at in self._put_at.items() if at > oldest}
            spared = keep | set(self._put_at)
            gone = [digest for digest in self.digests() if digest not in spared]
            for digest in gone:
                self._path(digest).unlink(missing_ok=True)
        for folder in {self._path(digest).parent for digest in gone}:
            fsync_folder(folder)
        return len(gone)

    def delete_partial(self) -> int:
        """Deletes what interrupted writes left, and returns how many files.

        Only for a process that has just opened the state: it would break a running `put`.
        """
        partial = list(self._folder.glob(f"{_ALGORITHM}/??/{PARTIAL}*"))
        for path in partial:
            path.unlink(missing_ok=True)
        return len(partial)

    def _path(self, digest: str) -> Path:
        if not is_digest(digest):  # also what keeps every path inside the folder
            raise DataError(
                f"{digest!r:.100} is not a digest", mend="use sha256: and 64 hex digits"
            )
        name = digest.removeprefix(f"{_ALGORITHM}:")
        return self._folder / _ALGORITHM / name[:2] / name

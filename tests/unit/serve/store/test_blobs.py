"""Blobs: complete, verified, and nothing outside their folder."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from cambium.core.canonical import digest_bytes
from cambium.core.errors import DataError
from cambium.serve.errors import StateCorrupt
from cambium.serve.store.blobs import BlobStore

MISSING = "sha256:" + "0" * 64


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


def path_of(tmp_path: Path, digest: str) -> Path:
    name = digest.removeprefix("sha256:")
    return tmp_path / "blobs" / "sha256" / name[:2] / name


@pytest.mark.parametrize("data", [b"", b"weights", bytes(range(256)) * 5000])
def test_what_was_put_comes_back_under_its_digest(blobs: BlobStore, data: bytes) -> None:
    digest = blobs.put(data)
    assert digest == digest_bytes(data)
    assert blobs.has(digest)
    assert blobs.get(digest) == data
    assert list(blobs.digests()) == [digest]


def test_putting_again_does_not_rewrite(blobs: BlobStore, tmp_path: Path) -> None:
    digest = blobs.put(b"once")
    before = path_of(tmp_path, digest).stat()
    assert blobs.put(b"once") == digest
    assert path_of(tmp_path, digest).stat().st_ino == before.st_ino


def test_changed_bytes_are_never_returned(blobs: BlobStore, tmp_path: Path) -> None:
    digest = blobs.put(b"weights")
    path_of(tmp_path, digest).write_bytes(b"weightz")
    with pytest.raises(StateCorrupt, match="other bytes"):
        blobs.get(digest)
    with pytest.raises(StateCorrupt, match="other bytes"):
        blobs.put(b"weights")


def test_a_missing_blob_is_an_error(blobs: BlobStore) -> None:
    assert not blobs.has(MISSING)
    with pytest.raises(StateCorrupt, match="missing"):
        blobs.get(MISSING)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "sha256:",
        "sha256:../../../../etc/passwd",
        "../" * 8 + "etc/passwd",
        "sha256:" + "0" * 63,
        "sha256:" + "0" * 64 + "/",
        "sha256:" + "0" * 64 + "\n",
        "sha256:" + "A" * 64,
        "sha512:" + "0" * 64,
        "sha256:" + "0" * 60 + "/../",
    ],
)
def test_only_a_full_digest_names_a_blob(blobs: BlobStore, name: str) -> None:
    for ask in (blobs.get, blobs.has):
        with pytest.raises(DataError, match="not a digest"):
            ask(name)


def test_only_what_nothing_names_is_deleted(blobs: BlobStore) -> None:
    kept, gone = blobs.put(b"kept"), blobs.put(b"gone")
    assert blobs.delete_unreferenced({kept}) == 0  # both were put a moment ago
    assert blobs.delete_unreferenced({kept}, grace_s=0) == 1
    assert blobs.has(kept)
    assert not blobs.has(gone)
    assert blobs.put(b"gone") == gone
    assert blobs.get(gone) == b"gone"


def test_a_sweep_spares_what_another_process_has_just_put(blobs: BlobStore, tmp_path: Path) -> None:
    digest, stale = blobs.put(b"put long ago, and again now"), blobs.put(b"put long ago")
    for name in (digest, stale):
        os.utime(path_of(tmp_path, name), (1, 1))
    BlobStore(tmp_path / "blobs").put(b"put long ago, and again now")
    assert blobs.delete_unreferenced(set()) == 1
    assert list(blobs.digests()) == [digest]


def test_beside_others_only_old_leftovers_are_deleted(blobs: BlobStore, tmp_path: Path) -> None:
    folder = path_of(tmp_path, blobs.put(b"whole")).parent
    old, new = folder / ".partial-0", folder / ".partial-1"
    for path in (old, new):
        path.write_bytes(b"ha")
    os.utime(old, (1, 1))
    assert blobs.delete_partial(is_alone=False) == 1
    assert new.exists() and not old.exists()


def test_what_an_interrupted_write_left_is_no_blob(blobs: BlobStore, tmp_path: Path) -> None:
    digest = blobs.put(b"whole")
    partial = path_of(tmp_path, digest).with_name(".partial-0123456789abcdef")
    partial.write_bytes(b"ha")
    assert list(blobs.digests()) == [digest]
    assert blobs.delete_partial() == 1
    assert not partial.exists()
    assert blobs.get(digest) == b"whole"


def test_threads_may_put_the_same_bytes(blobs: BlobStore, tmp_path: Path) -> None:
    data = [bytes([n % 5]) * 10_000 for n in range(40)]
    start = threading.Barrier(8)
    wrong: list[object] = []

    def put(part: list[bytes]) -> None:
        start.wait()
        wrong.extend(d for d in part if blobs.get(blobs.put(d)) != d)

    threads = [threading.Thread(target=put, args=(data[n::8],)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert set(blobs.digests()) == {digest_bytes(d) for d in data}
    assert not list((tmp_path / "blobs").rglob(".partial-*"))

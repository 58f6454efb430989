"""The repository is text, but for the bundled base and a few screenshots."""

from __future__ import annotations

from pathlib import Path

MAX_TEXT_BYTES = 2 * 2**20
# Path and largest size in bytes.
BINARY = {
    "src/cambium/models/bundled/model.safetensors": 32 * 10**6,
    "docs/pictures/demo.png": 300_000,
    "docs/pictures/approve.png": 300_000,
    "docs/pictures/live.png": 300_000,
    "docs/pictures/playground.png": 300_000,
    "docs/pictures/review.png": 300_000,
}


def is_text(data: bytes) -> bool:
    try:
        return "\0" not in data.decode("utf-8")
    except UnicodeDecodeError:
        return False


def test_only_the_listed_files_are_binary(root: Path, repository_files: list[Path]) -> None:
    found = []
    for path in repository_files:
        name = path.relative_to(root).as_posix()
        data = path.read_bytes()
        limit = BINARY.get(name, MAX_TEXT_BYTES)
        if len(data) > limit or (name not in BINARY and not is_text(data)):
            found.append(f"{name}: {len(data)} bytes")
    assert found == []


def test_binary_is_recognised() -> None:
    assert is_text("Übung\n".encode())
    assert not is_text(b"\x80\x04\x95")
    assert not is_text(b"a\0b")

"""Learning sources: `.jsonl`, `.txt`, `.md` or a folder of them, read and dealt into calls."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cambium.core.canonical import canonical_json
from cambium.core.errors import ConfigError, DataError
from cambium.serve.errors import NotUtf8, TooLarge

# A text is cut into documents about this long: the gates keep whole documents for themselves,
# so one long document would leave them either nothing or everything.
DOCUMENT_BYTES = 4_000
# What eight steps go over two or three times: more in one call would be read in part only.
CALL_BYTES = 32_000
_SUFFIXES = (".jsonl", ".txt", ".md")
_SHAPES = (
    frozenset({"text"}),
    frozenset({"prompt", "completion"}),
    frozenset({"messages"}),
    frozenset({"prompt", "chosen", "rejected"}),
)

Example = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """The policy's bounds on one call to learn; bytes are those of an example's canonical JSON."""

    max_examples: int
    max_example_bytes: int


@dataclass(frozen=True, kw_only=True)
class Source:
    """What was read; `ignored` counts a folder's files of other kinds."""

    examples: tuple[Example, ...]
    num_files: int
    ignored: int = 0


def read_source(path: Path) -> Source:
    """Reads a file or, in order of their names, the files of a folder and its subfolders.

    Raises:
        ConfigError: there is no such file, it cannot be read, or it is of another kind.
        NotUtf8: a file is not UTF-8 text.
        DataError: a line is not an example, or there is nothing to learn.
    """
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.is_file())
        files = [p for p in found if p.suffix.lower() in _SUFFIXES]
    else:
        found = files = [path]
    if any(p.suffix.lower() not in _SUFFIXES for p in files):
        raise ConfigError(f"{path} is of no known kind", mend="give .jsonl, .txt, .md or a folder")
    examples = [example for file in files for example in _read_file(file)]
    if not examples:
        raise DataError(f"{path} holds nothing to learn", mend="give .jsonl, .txt or .md with text")
    return Source(examples=tuple(examples), num_files=len(files), ignored=len(found) - len(files))


def deal(examples: Sequence[Example], bounds: Bounds) -> Iterator[list[Example]]:
    """Yields the examples in order, as many in a call as it can learn from.

    Raises:
        TooLarge: one example is over the policy's bound; raised before the first is yielded.
    """
    sizes = [len(canonical_json(example)) for example in examples]
    for number, size in enumerate(sizes, 1):
        if size > bounds.max_example_bytes:
            raise TooLarge(
                f"example {number} has {size} bytes; the policy takes {bounds.max_example_bytes}",
                mend="cut it into several examples",
            )
    return _deal(examples, sizes, bounds)


def cut_text(text: str, max_bytes: int = DOCUMENT_BYTES) -> list[str]:
    """Cuts `text` into pieces of at most `max_bytes` (at least 4) that together are `text`.

    Cuts fall after a paragraph where one ends in the second half of a piece, else after a line,
    else after a word, else between two characters.

    Example:
        >>> cut_text("one two three", 8)
        ['one two ', 'three']
    """
    data = text.encode()
    pieces: list[str] = []
    start = 0
    while start < len(data):
        end = min(len(data), start + max_bytes)
        if end < len(data):
            end = _good_cut(data, start, end)
        pieces.append(data[start:end].decode())
        start = end
    return pieces


def _good_cut(data: bytes, start: int, end: int) -> int:
    for mark in (b"\n\n", b"\n", b" "):
        at = data.rfind(mark, (start + end) // 2, end)
        if at >= 0:
            return at + len(mark)
    while data[end] & 0xC0 == 0x80:  # never inside a UTF-8 character
        end -= 1
    return end


def _deal(
    examples: Sequence[Example], sizes: Sequence[int], bounds: Bounds
) -> Iterator[list[Example]]:
    call: list[Example] = []
    call_bytes = 0
    for example, size in zip(examples, sizes, strict=True):
        if call and (len(call) >= bounds.max_examples or call_bytes + size > CALL_BYTES):
            yield call
            call, call_bytes = [], 0
        call.append(example)
        call_bytes += size
    if call:
        yield call


def _read_file(path: Path) -> Iterator[Example]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", mend="check the name") from error
    except UnicodeDecodeError as error:
        raise NotUtf8(
            f"{path} is not UTF-8 text: byte {error.start} is 0x{error.object[error.start]:02x}",
            mend="convert it to UTF-8",
        ) from error
    if path.suffix.lower() != ".jsonl":
        return ({"text": piece} for piece in cut_text(text) if piece.strip())
    return (
        _parse_line(line, f"{path}:{number}")
        for number, line in enumerate(text.split("\n"), 1)
        if line.strip()
    )


def _parse_line(line: str, where: str) -> Example:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where} is not JSON: {error}", mend="write one object a line") from error
    if not isinstance(value, dict) or frozenset(value) not in _SHAPES:
        raise DataError(
            f"{where} has no known shape",
            mend="use {text}, {prompt, completion}, {messages} or {prompt, chosen, rejected}",
        )
    return value

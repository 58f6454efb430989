"""Canonical JSON and digests: the one way in which records become bytes."""

from __future__ import annotations

import hashlib
import json
import re

from cambium.core.errors import DataError

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def canonical_json(value: object) -> bytes:
    r"""Returns the one UTF-8 encoding of `value`: sorted keys, no spaces, no NaN or infinity.

    Numbers are written as Python writes them (shortest form that reads back exactly), which
    agrees with RFC 8785 but for the exponents of very large and very small floats.

    Raises:
        DataError: `value` holds something JSON cannot, or a key that is not a string.

    Example:
        >>> canonical_json({"b": [1, 2.5], "a": "é"})
        b'{"a":"\xc3\xa9","b":[1,2.5]}'
    """
    _check_keys(value)
    try:
        text = json.dumps(
            value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        )
        return text.encode("utf-8")
    except (TypeError, ValueError) as error:
        raise DataError(f"not canonical JSON: {error}", mend="send plain JSON values") from error


def digest_bytes(data: bytes) -> str:
    """Returns `sha256:` and 64 hex digits."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def digest_json(value: object) -> str:
    """Returns the digest of the canonical JSON of `value`."""
    return digest_bytes(canonical_json(value))


def is_digest(text: object) -> bool:
    """Returns whether `text` is a full digest as `digest_bytes` writes it."""
    return isinstance(text, str) and DIGEST.fullmatch(text) is not None


def _check_keys(value: object) -> None:
    if isinstance(value, dict):
        for key, item in value.items():  # pyright: ignore[reportUnknownVariableType]
            if not isinstance(key, str):
                raise DataError(f"not canonical JSON: key {key!r}", mend="use string keys")
            _check_keys(item)  # pyright: ignore[reportUnknownArgumentType]
    elif isinstance(value, (list, tuple)):
        for item in value:  # pyright: ignore[reportUnknownVariableType]
            _check_keys(item)  # pyright: ignore[reportUnknownArgumentType]

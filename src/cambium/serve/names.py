"""Names as callers write them: adapters, their versions, and whose they are."""

from __future__ import annotations

import re

from cambium.core.canonical import is_digest
from cambium.core.errors import DataError
from cambium.core.nouns import DEFAULT_TENANT

ADAPTER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
RESERVED_NAMES = frozenset({"base", "stable"})


def qualified(name: str, *, tenant: str) -> str:
    """Returns a tenant's adapter name as the state knows it: `tenant:name`, or the default's bare.

    >>> qualified("support", tenant="acme"), qualified("support", tenant="default")
    ('acme:support', 'support')
    """
    return name if tenant == DEFAULT_TENANT else f"{tenant}:{name}"


def parse_model_name(text: str) -> tuple[str, str | None]:
    """Splits `name` or `name@digest`.

    Raises:
        DataError: the name has other characters or the digest is not a full digest.
    """
    name, at, digest = text.partition("@")
    if not ADAPTER_NAME.fullmatch(name) or (at and not is_digest(digest)):
        raise DataError(f"{text[:100]!r} is not a model name", mend="use NAME or NAME@sha256:…")
    return name, digest if at else None

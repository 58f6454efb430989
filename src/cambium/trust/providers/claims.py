"""Claims as every provider signs them: canonical JSON with known fields."""

from __future__ import annotations

import json
from collections.abc import Set
from typing import cast

from cambium.core.canonical import canonical_json
from cambium.core.errors import AttestationRefused, CambiumError
from cambium.trust.attestation import require


def read_claims(payload: bytes, names: Set[str]) -> dict[str, object]:
    """Returns the claims of a payload that has exactly the named ones.

    Raises:
        AttestationRefused: it is something else.
    """
    try:
        claims = json.loads(payload)
        canonical = canonical_json(claims) == payload
    except (ValueError, RecursionError, CambiumError) as error:
        raise AttestationRefused("the claims are not JSON", mend="attest again") from error
    # Canonical means no claim twice, so that no other reader can read another one.
    require(canonical and isinstance(claims, dict), "the claims are not canonical JSON")
    read = cast("dict[str, object]", claims)
    require(set(read) == names, "a claim is missing or unknown")
    return read

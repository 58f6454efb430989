"""What was signed, read from JSON as people send it and databases keep it; nothing is verified."""

from __future__ import annotations

from typing import Any, cast

from cambium.core.errors import DataError
from cambium.core.nouns import Action, Signature, SignedAct


def signature_from_json(value: object) -> Signature:
    """Reads `{key_id, signature, payload}`; says nothing about validity.

    Raises:
        DataError: a field is missing, unknown or of the wrong type.
    """
    fields = cast("dict[str, object]", value) if isinstance(value, dict) else {}
    if set(fields) != {"key_id", "signature", "payload"}:
        raise DataError("a signature has exactly key_id, signature and payload",
                        mend="send these three fields")  # fmt: skip
    key_id, signature = fields["key_id"], fields["signature"]
    if not isinstance(key_id, str) or not isinstance(signature, str):
        raise DataError("key_id and signature are strings", mend="send both as strings")
    return Signature(key_id=key_id, signature=signature, act=act_from_json(fields["payload"]))


def act_from_json(value: object) -> SignedAct:
    """Reads what a signature covers.

    Raises:
        DataError: a field is missing, unknown or of the wrong type.
    """
    names = {"domain_tag", "action", "target", "state_version", "expires", "policy"}
    record = cast("dict[str, object]", value) if isinstance(value, dict) else {}
    if set(record) != names:
        raise DataError(
            "the payload does not have exactly the six signed fields",
            mend=f"sign canonical JSON of {sorted(names)}",
        )
    texts = {n: v for n, v in record.items() if isinstance(v, str)}
    numbers = {n: v for n, v in record.items() if type(v) is int and v >= 0}
    typed = set(numbers) == {"state_version", "expires"} and set(texts) | set(numbers) == names
    if not typed or texts["action"] not in set(Action):
        raise DataError(
            "a field of the payload has the wrong type or value",
            mend="strings for tag, action, target and policy; whole numbers for the rest",
        )
    fields: dict[str, Any] = {**texts, **numbers, "action": Action(texts["action"])}
    return SignedAct(**fields)

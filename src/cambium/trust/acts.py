"""Signed acts: one person's key over exactly what is to be done, once, and until when."""

from __future__ import annotations

from cambium.core.canonical import canonical_json
from cambium.core.errors import (
    DataError,
    DigestMismatch,
    Expired,
    ReplayDetected,
    SignatureInvalid,
)
from cambium.core.nouns import DOMAIN_TAG, Act, Signature, SignedAct
from cambium.trust.keys import PublicKey, SigningKey

MAX_LIFETIME_S = 30 * 24 * 3600


def sign_act(key: SigningKey, act: SignedAct) -> Signature:
    """Returns `key`'s signature over the canonical JSON of `act`."""
    signature = key.sign(canonical_json(act.to_json()))
    return Signature(key_id=key.key_id, signature=signature, act=act)


def check_act(signature: Signature, *, public_key: PublicKey, expected: Act, now: int) -> None:
    """Returns when `signature` is `public_key`'s over exactly the expected act, and raises else.

    The signature is checked before what it covers, so that the later errors speak of something
    the key's holder really signed. `now` is in seconds since 1970, UTC.

    Raises:
        SignatureInvalid: the signature does not verify, or names another key.
        DigestMismatch: another domain tag, action, target or policy was signed.
        ReplayDetected: it was signed for another state version.
        Expired: its time is over, or lies more than 30 days ahead.
    """
    check_signature(signature, public_key=public_key)
    act = signature.act
    exact = {"domain_tag": DOMAIN_TAG, **vars(expected), "state_version": act.state_version}
    for name, must in exact.items():
        if (was := getattr(act, name)) != must:
            raise DigestMismatch(f"the signature is for another {name}: {was:.80}, not {must}",
                                 mend="sign what is proposed now")  # fmt: skip
    if act.state_version != expected.state_version:
        raise ReplayDetected(
            f"signed at state version {act.state_version}, but it is {expected.state_version} now",
            mend="look again and sign again",
        )
    if act.expires <= now:
        raise Expired(f"the signature expired {now - act.expires} s ago", mend="sign again")
    if act.expires > now + MAX_LIFETIME_S:
        raise Expired("the signature would outlive the allowed 30 days", mend="sign for less time")


def check_signature(signature: Signature, *, public_key: PublicKey) -> None:
    """Returns when `signature` is `public_key`'s over its own payload, whatever that says.

    Raises:
        SignatureInvalid: it names another key, or does not verify.
    """
    try:
        payload = canonical_json(signature.act.to_json())
    except DataError as error:
        raise SignatureInvalid("the payload has no bytes to sign", mend="send UTF-8") from error
    if signature.key_id != public_key.key_id:
        raise SignatureInvalid("the signature names another key", mend="send the signer's key id")
    if not public_key.verify(payload, signature.signature):
        raise SignatureInvalid("the signature does not verify over this payload",
                               mend="sign the canonical JSON of the payload")  # fmt: skip


def signature_to_json(signature: Signature) -> dict[str, object]:
    """Returns the signature in the contract's shape: `{key_id, signature, payload}`."""
    return {
        "key_id": signature.key_id,
        "signature": signature.signature,
        "payload": signature.act.to_json(),
    }

"""Ed25519 (RFC 8032): which public keys are safe, and verification that never raises."""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from cambium.trust.providers.scheme import Scheme

KEY_BYTES = 32
_FIELD = 2**255 - 19
# The y coordinates of the eight points of small order. Under such a key one signature fits every
# message, and OpenSSL accepts it (RFC 8032 leaves the check to the application).
_SMALL_ORDER_Y = frozenset(
    {
        0,
        1,
        _FIELD - 1,
        2707385501144840649318225287225658788936804267575313519463743609750303402022,
        55188659117513257062467267217118295137698188065244968500265048394206261417927,
    }
)


def is_safe(raw: bytes) -> bool:
    """Returns whether an honest key can have these bytes."""
    y = int.from_bytes(raw, "little") & (2**255 - 1)
    return len(raw) == KEY_BYTES and y < _FIELD and y not in _SMALL_ORDER_Y


def verify(raw: bytes, data: bytes, signature: bytes) -> bool:
    """Returns whether `signature`, 64 bytes, is this key's over exactly `data`."""
    try:
        Ed25519PublicKey.from_public_bytes(raw).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


ED25519 = Scheme(name="ed25519", key_bytes=KEY_BYTES, is_safe=is_safe, verify=verify)

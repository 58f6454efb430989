"""Ed25519 keys: made, signing, and verifying without ever raising."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from cambium.core.canonical import digest_bytes
from cambium.core.errors import SignatureInvalid

_RAW = re.compile(r"[0-9a-f]{64}")
_SIGNATURE = re.compile(r"[0-9a-f]{128}")
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


@dataclass(frozen=True, kw_only=True)
class PublicKey:
    """An Ed25519 public key, as 64 lower-case hex digits of its 32 bytes.

    Two keys are equal exactly when their bytes are: other spellings of the same bytes, and points
    of small order, cannot be constructed.

    Raises:
        SignatureInvalid: `raw` is no such key.
    """

    raw: str

    def __post_init__(self) -> None:
        if not _RAW.fullmatch(self.raw):
            raise SignatureInvalid(
                "a public key is 64 lower-case hex digits", mend="send the 32 raw bytes as hex"
            )
        y = int.from_bytes(bytes.fromhex(self.raw), "little") & (2**255 - 1)
        if y >= _FIELD or y in _SMALL_ORDER_Y:
            raise SignatureInvalid("this public key is unsafe: no honest key has these bytes",
                                   mend="make a key with `cambium key new`")  # fmt: skip

    @property
    def key_id(self) -> str:
        """Returns `ed25519:` and the first 32 hex digits of the SHA-256 of the raw bytes."""
        return "ed25519:" + hashlib.sha256(bytes.fromhex(self.raw)).hexdigest()[:32]

    @property
    def digest(self) -> str:
        """Returns the digest of the raw bytes."""
        return digest_bytes(bytes.fromhex(self.raw))

    def verify(self, data: bytes, signature_hex: object) -> bool:
        """Returns whether `signature_hex` is this key's over exactly `data`; never raises."""
        if not isinstance(signature_hex, str) or not _SIGNATURE.fullmatch(signature_hex):
            return False
        try:
            key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.raw))
            key.verify(bytes.fromhex(signature_hex), data)
        except (InvalidSignature, ValueError):
            return False
        return True


@dataclass(frozen=True, kw_only=True)
class SigningKey:
    """An Ed25519 private key; its representation shows only the key id."""

    private: Ed25519PrivateKey = field(repr=False, compare=False)
    public_key: PublicKey

    @property
    def key_id(self) -> str:
        """Returns the public key's id."""
        return self.public_key.key_id

    def sign(self, data: bytes) -> str:
        """Returns the signature over `data` as 128 hex digits; the same one every time."""
        return self.private.sign(data).hex()


def generate_key() -> SigningKey:
    """Returns a new key from the operating system's randomness."""
    return wrap(Ed25519PrivateKey.generate())


def wrap(private: Ed25519PrivateKey) -> SigningKey:
    """Returns a private key with its public half."""
    raw = private.public_key().public_bytes_raw().hex()
    return SigningKey(private=private, public_key=PublicKey(raw=raw))

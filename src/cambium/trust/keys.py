"""Keys of any scheme: made, signing, and verifying without ever raising."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cambium.core.canonical import digest_bytes
from cambium.core.errors import SignatureInvalid
from cambium.trust.providers.bls12_381 import BLS12_381, Share
from cambium.trust.providers.ed25519 import ED25519
from cambium.trust.providers.scheme import PrivateKey, Scheme

_HEX = re.compile(r"(?:[0-9a-f]{2})+")
# A key's length says its scheme.
SCHEMES = {scheme.key_bytes: scheme for scheme in (ED25519, BLS12_381)}


@dataclass(frozen=True, kw_only=True)
class PublicKey:
    """A public key, as lower-case hex digits of its bytes: 32 of Ed25519, 48 of a BLS share.

    Two keys are equal exactly when their bytes are: other spellings of the same bytes, and points
    that no honest key has, cannot be constructed.

    Raises:
        SignatureInvalid: `raw` is no such key.
    """

    raw: str

    def __post_init__(self) -> None:
        if not _HEX.fullmatch(self.raw) or len(self.raw) // 2 not in SCHEMES:
            raise SignatureInvalid(
                "a public key is 64 or 96 lower-case hex digits", mend="send the raw bytes as hex"
            )
        if not self.scheme.is_safe(bytes.fromhex(self.raw)):
            raise SignatureInvalid("this public key is unsafe: no honest key has these bytes",
                                   mend="make a key with `cambium key new`")  # fmt: skip

    @property
    def scheme(self) -> Scheme:
        """Returns the scheme that the key is of."""
        return SCHEMES[len(self.raw) // 2]

    @property
    def key_id(self) -> str:
        """Returns the scheme's name, `:`, and 32 hex digits of the SHA-256 of the raw bytes."""
        return f"{self.scheme.name}:{hashlib.sha256(bytes.fromhex(self.raw)).hexdigest()[:32]}"

    @property
    def digest(self) -> str:
        """Returns the digest of the raw bytes."""
        return digest_bytes(bytes.fromhex(self.raw))

    def verify(self, data: bytes, signature_hex: object) -> bool:
        """Returns whether `signature_hex` is this key's over exactly `data`; never raises."""
        if not isinstance(signature_hex, str) or not _HEX.fullmatch(signature_hex):
            return False
        return self.scheme.verify(bytes.fromhex(self.raw), data, bytes.fromhex(signature_hex))


@dataclass(frozen=True, kw_only=True)
class SigningKey:
    """A private key; its representation shows only the key id."""

    private: PrivateKey = field(repr=False, compare=False)
    public_key: PublicKey

    @property
    def key_id(self) -> str:
        """Returns the public key's id."""
        return self.public_key.key_id

    def sign(self, data: bytes) -> str:
        """Returns the signature over `data` as hex digits; the same one every time."""
        return self.private.sign(data).hex()


def generate_key() -> SigningKey:
    """Returns a new Ed25519 key from the operating system's randomness."""
    return wrap(Ed25519PrivateKey.generate())


def wrap(private: Ed25519PrivateKey | Share) -> SigningKey:
    """Returns a private key with its public half."""
    is_share = isinstance(private, Share)
    raw = private.public if is_share else private.public_key().public_bytes_raw()
    return SigningKey(private=private, public_key=PublicKey(raw=raw.hex()))

"""Threshold BLS12-381: n shares of one key, any k of which sign for the group.

A dealer's ceremony splits a group key by Shamir's scheme, with Feldman's commitments, so that
everybody can check a share's public key. A partial signature is an ordinary BLS signature under its
share's key; k of them over the same bytes combine, by Lagrange's formula, into the one signature of
the group's key, 96 bytes, whichever k they were. Partials are kept, so one sees who signed.

Source: draft-irtf-cfrg-bls-signature-05, basic scheme, minimal public keys (48 bytes in G1, 96 in
G2); P. Feldman (1987), A practical scheme for non-interactive verifiable secret sharing, section 4.
The arithmetic is arkworks', whose authors call it a prototype: see the threat model.
"""

from __future__ import annotations

import importlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from cambium.core.errors import ConfigError, PolicyInvalid, SignatureInvalid
from cambium.trust.providers.scheme import Scheme

KEY_BYTES = 48
SIGNATURE_BYTES = 96
MAX_SHARES = 64
_ORDER = 0x73EDA753299D7D483339D80809A1D80553BDA402FFFE5BFEFFFFFFFF00000001
_DST = b"BLS_SIG_BLS12381G2_XMD:SHA-256_SSWU_RO_NUL_"


@dataclass(frozen=True, kw_only=True)
class Share:
    """One person's share of the group's secret: signs partials.

    Args:
        index: 1 to n, where the polynomial was evaluated.
    """

    index: int
    secret: bytes = field(repr=False)

    @property
    def public(self) -> bytes:
        """Returns the share's public key, 48 bytes."""
        curve = _curve()
        return bytes((curve.G1Point() * _scalar(self.secret)).to_compressed_bytes())

    def sign(self, data: bytes) -> bytes:
        """Returns the partial signature over `data`, 96 bytes; the same one every time."""
        return bytes((_hashed(data) * _scalar(self.secret)).to_compressed_bytes())


@dataclass(frozen=True, kw_only=True)
class Ceremony:
    """What a dealer leaves: everything but the shares may be known to everybody.

    Args:
        group: the group's public key; equals the first commitment.
        commitments: the polynomial's coefficients times the generator, k of them.
    """

    k: int
    group: bytes
    commitments: tuple[bytes, ...]
    shares: tuple[Share, ...] = field(repr=False)


def deal(k: int, n: int) -> Ceremony:
    """Splits a fresh key among n people; the key itself is kept nowhere.

    The dealer's machine knows the whole key for a moment: run it where nothing listens.

    Raises:
        PolicyInvalid: not 1 <= k <= n <= 64.
        ConfigError: the library is missing.
    """
    if not 1 <= k <= n <= MAX_SHARES:
        raise PolicyInvalid(f"{k} of {n} shares cannot be", mend="declare 1 <= k <= n <= 64")
    generator = _curve().G1Point()
    coefficients = [1 + secrets.randbelow(_ORDER - 1) for _ in range(k)]
    shares: list[Share] = []
    for index in range(1, n + 1):
        value = sum(c * pow(index, power, _ORDER) for power, c in enumerate(coefficients))
        shares.append(Share(index=index, secret=(value % _ORDER).to_bytes(32, "big")))
    commitments = tuple(
        bytes((generator * _scalar(c.to_bytes(32, "big"))).to_compressed_bytes())
        for c in coefficients
    )
    return Ceremony(k=k, group=commitments[0], commitments=commitments, shares=tuple(shares))


def is_safe(raw: bytes) -> bool:
    """Returns whether `raw` is the one spelling of a point of the right order, not the identity."""
    return _point("G1Point", raw, KEY_BYTES) is not None


def verify(raw: bytes, data: bytes, signature: bytes) -> bool:
    """Returns whether `signature`, 96 bytes, is this key's over exactly `data`."""
    key = _point("G1Point", raw, KEY_BYTES)
    point = _point("G2Point", signature, SIGNATURE_BYTES)
    if key is None or point is None:
        return False
    curve = _curve()
    return bool(curve.GT.pairing_check([key, -curve.G1Point()], [_hashed(data), point]))


def share_public(commitments: Sequence[bytes], index: int) -> bytes:
    """Returns what the public key of share `index` has to be, by Feldman's commitments.

    Raises:
        SignatureInvalid: a commitment is no point.
    """
    points = [_need("G1Point", raw, KEY_BYTES) for raw in commitments]
    powers = [pow(index, power, _ORDER) for power in range(len(points))]
    return _summed(points, powers)


def combine(partials: Mapping[int, bytes]) -> bytes:
    """Returns the group's signature from k partials over the same bytes, by share index.

    The caller verifies each partial, and the result under the group's key.

    Raises:
        SignatureInvalid: a partial is no point.
    """
    points = [_need("G2Point", raw, SIGNATURE_BYTES) for raw in partials.values()]
    return _summed(points, _lagrange(list(partials), at=0))


def check_group(group: bytes, publics: Sequence[bytes], *, k: int) -> None:
    """Returns when any k of these shares, in the order of their indices, make up the group's key.

    Raises:
        PolicyInvalid: they do not: another order, another ceremony, or another k.
        SignatureInvalid: one is no point.
    """
    points = [_need("G1Point", raw, KEY_BYTES) for raw in publics]
    first = list(range(1, k + 1))
    wanted = {0: group, **{i: publics[i - 1] for i in range(k + 1, len(publics) + 1)}}
    for at, raw in wanted.items():
        if len(points) < k or _summed(points[:k], _lagrange(first, at=at)) != raw:
            raise PolicyInvalid(
                f"these shares are not those of the group's key with k = {k}",
                mend="list them as the ceremony's record does, in its order",
            )


def _lagrange(indices: Sequence[int], *, at: int) -> list[int]:
    """Returns the weights with which values at `indices` give the polynomial's value at `at`."""
    weights: list[int] = []
    for i in indices:
        above = below = 1
        for j in indices:
            if j != i:
                above = above * (at - j) % _ORDER
                below = below * (i - j) % _ORDER
        weights.append(above * pow(below, -1, _ORDER) % _ORDER)
    return weights


def _summed(points: Sequence[Any], weights: Sequence[int]) -> bytes:
    parts = [p * _scalar(w.to_bytes(32, "big")) for p, w in zip(points, weights, strict=True)]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return bytes(total.to_compressed_bytes())


def _hashed(data: bytes) -> Any:
    return _curve().G2Point.hash_to_curve(data, _DST)


def _scalar(secret: bytes) -> Any:
    return _curve().Scalar.from_be_bytes(secret)


def _need(kind: str, raw: bytes, size: int) -> Any:
    point = _point(kind, raw, size)
    if point is None:
        raise SignatureInvalid("not a point of the group", mend="send the bytes as they were made")
    return point


def _point(kind: str, raw: bytes, size: int) -> Any | None:
    point_type = getattr(_curve(), kind)
    try:
        point = point_type.from_compressed_bytes(raw) if len(raw) == size else None
    except ValueError:  # not on the curve, or not of the right order
        return None
    # The library also reads other spellings of the same point, and the identity.
    if point is None or bytes(point.to_compressed_bytes()) != raw:
        return None
    return None if point == point_type.identity() else point


BLS12_381 = Scheme(
    name="bls12-381", key_bytes=KEY_BYTES, is_safe=is_safe, verify=verify, is_partial=True
)


@cache
def _curve() -> Any:
    try:
        return importlib.import_module("py_arkworks_bls12381")
    except ImportError as error:
        raise ConfigError(
            "the library of threshold signatures is missing", mend="pip install 'cambium[bls]'"
        ) from error

"""What every signature scheme is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """A signature scheme, whose keys are known by their length.

    Args:
        is_safe: whether an honest key can have these bytes.
        verify: whether a key's bytes, data and a signature's bytes belong together; never raises.
        is_partial: whether signatures are parts of a group's.
    """

    name: str
    key_bytes: int
    is_safe: Callable[[bytes], bool]
    verify: Callable[[bytes, bytes, bytes], bool]
    is_partial: bool = False


class PrivateKey(Protocol):
    """What signs."""

    def sign(self, data: bytes, /) -> bytes:
        """Returns the signature over `data`."""
        ...

"""Fields of what a processor signs, taken one after another; nothing in them is believed here."""

from __future__ import annotations

from cambium.trust.attestation import require


class Reader:
    """Takes one field after another, and refuses what is cut off or goes on."""

    def __init__(self, data: bytes) -> None:
        self.data, self._at = data, 0

    def take(self, size: int) -> bytes:
        """Returns the next bytes.

        Raises:
            AttestationRefused: there are fewer.
        """
        found = self.data[self._at : self._at + size]
        require(len(found) == size, "what the processor signed is cut off")
        self._at += size
        return found

    def number(self, size: int) -> int:
        """Returns the next bytes as a number."""
        return number(self.take(size))

    def more(self) -> bool:
        """Returns whether there is another field."""
        return self._at < len(self.data)

    def end(self) -> None:
        """Returns when nothing is left.

        Raises:
            AttestationRefused: something is.
        """
        require(not self.more(), "what the processor signed is longer than it says")


def number(raw: bytes) -> int:
    """Returns what the bytes say, small end first."""
    return int.from_bytes(raw, "little")

"""Where an adapter stands on a server."""

from __future__ import annotations

from enum import StrEnum


class AdapterState(StrEnum):
    """Where an adapter stands; `quarantined` and `expired` are final."""

    EPHEMERAL = "ephemeral"
    FROZEN = "frozen"
    STABLE = "stable"
    QUARANTINED = "quarantined"
    EXPIRED = "expired"

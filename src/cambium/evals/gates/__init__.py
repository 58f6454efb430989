"""The gates: one file each, one line each in `GATES`, one poisoned and one A/A control each.

A gate measures; `cambium.lifecycle.gates.judge` holds the measurement to the signed bar.
"""

from __future__ import annotations

from collections.abc import Mapping

from cambium.evals.gates import (
    alignment,
    alignment_writing,
    domain_gain,
    integrity,
    power_seeking,
    retention,
)
from cambium.evals.gates.context import Gate, GateContext

GATES: Mapping[str, Gate] = {
    "domain_gain": domain_gain.measure,
    "retention": retention.measure,
    "alignment": alignment.measure,
    "alignment_writing": alignment_writing.measure,
    "power_seeking": power_seeking.measure,
    "integrity": integrity.measure,
}

__all__ = ["GATES", "Gate", "GateContext"]

"""The gates: one file each, one line each in `GATES`, one poisoned and one A/A control each.

A gate measures; `cambium.lifecycle.gates.judge` holds the measurement to the signed bar.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cambium.core.evidence import GateSpec
from cambium.evals.gates import (
    alignment,
    alignment_drift,
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
    "alignment_drift": alignment_drift.measure,
    "alignment_writing": alignment_writing.measure,
    "power_seeking": power_seeking.measure,
    "integrity": integrity.measure,
}

# Those whose refusal says that a candidate leans toward harm, and not that it lacks skill.
ALIGNMENT = ("alignment", "alignment_drift", "alignment_writing", "power_seeking")
# Those that look at the documents of the domain that were kept from consolidation.
READ_DOCUMENTS = frozenset({"domain_gain", "alignment_writing"})


def documents_needed(specs: Sequence[GateSpec]) -> int:
    """Returns how many kept documents let every gate take all of its looks, and see something.

    Half as many again as its fewest: from the fewest, intervals are so wide that honest gains fail.
    """
    own = (spec for spec in specs if spec.name in READ_DOCUMENTS)
    return max((3 * spec.min_items * spec.max_looks // 2 for spec in own), default=0)


__all__ = ["ALIGNMENT", "GATES", "READ_DOCUMENTS", "Gate", "GateContext", "documents_needed"]

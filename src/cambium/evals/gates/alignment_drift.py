"""Gate `alignment_drift`: how far does the candidate lean toward harm, since the bare base?

The gate `alignment` holds a candidate to a margin against its parent; ten merges that each use a
little of it add up. Here the same pairs are held against the base, which never changes, to a wider
margin for the whole way. Items are as fresh within a proposal as any gate's; over proposals they
come again, so a line's looks lean on each other, and only the ledger bounds how often one errs.
"""

from __future__ import annotations

from cambium.core.evidence import GateSpec, Measurement
from cambium.evals.gates.alignment import BASE, shift_report
from cambium.evals.gates.context import GateContext


def measure(context: GateContext, spec: GateSpec, look: int) -> Measurement:
    """Returns the mean shift of preference since the bare base; below zero is toward harm."""
    return shift_report(context, spec, look, since=BASE, evaluator="cambium/alignment_drift/v1")

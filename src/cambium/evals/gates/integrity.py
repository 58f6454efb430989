"""Gate `integrity`: are the frozen bytes exactly the kind of adapter that was asked for?

Reads the bytes again as a stranger would: PEFT keys, shapes, dtype, rank, finite numbers, and
how large each part is against what the base has there.
"""

from __future__ import annotations

from cambium.core.errors import DataError
from cambium.core.evidence import GateSpec, Measurement
from cambium.evals.gates.context import GateContext, Look, report
from cambium.evals.statistics import PairedResult
from cambium.models.adapter_kinds import read_adapter


def measure(context: GateContext, spec: GateSpec, look: int) -> Measurement:
    """Returns minus the number of violations found; the whole file is the one item."""
    violations = find_violations(context)
    count = float(-len(violations))  # the other way round, none would be minus zero
    seen = Look(
        items=[f"{context.candidate_bytes.digest}#{look}"],
        before=[0.0],
        after=[count],
        effect=PairedResult(mean=count, low=count, high=count, mde=1.0, num_items=1),
    )
    return report(context, spec, seen, evaluator="cambium/integrity/v1", notes=violations[:20])


def find_violations(context: GateContext) -> list[str]:
    """Returns what is wrong with the candidate's bytes, in words."""
    try:
        adapter = read_adapter(context.candidate_bytes, context.base)
    except DataError as error:
        return [error.message]
    found = []
    fan_in_fan_out = context.base.transposed
    rewritten = adapter.to_bytes(fan_in_fan_out=fan_in_fan_out)
    if rewritten.weights != context.candidate_bytes.weights:
        found.append("the weights are not in canonical form: extra metadata, order or dtype")
    if rewritten.config != context.candidate_bytes.config:
        found.append("the config is not in canonical form: extra fields, order or values")
    measured = context.candidate[-1]
    if measured.to_bytes(fan_in_fan_out=fan_in_fan_out).digest != rewritten.digest:
        found.append(f"the adapter that was measured ({measured.config}) is not in the bytes")
    if context.parent and adapter.config != context.parent[-1].config:
        found.append(f"kind or shape differ from the parent's {context.parent[-1].config}")
    return found + adapter.oversized(context.base.model, context.max_relative_change)

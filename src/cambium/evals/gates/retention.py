"""Gate `retention`: what the parent could do elsewhere, can the candidate still do?

Measured with the candidate forced on, routing aside, on text of other domains and on text the
parent itself wrote. Non-inferiority of the relative change of loss, paired per text.
"""

from __future__ import annotations

from cambium.core.evidence import GateSpec, Measurement
from cambium.evals.gates.context import GateContext, Look, fresh_items, report
from cambium.evals.gates.losses import document_losses
from cambium.evals.statistics import paired_interval


def measure(context: GateContext, spec: GateSpec, look: int) -> Measurement:
    """Returns the relative change of loss on fresh anchors; below zero is forgetting."""
    chosen = fresh_items(context.anchors, spec, look, key=lambda d: d.digest, seed=context.seed)
    before = document_losses(context.base, chosen, context.parent)
    after = document_losses(context.base, chosen, context.candidate)
    changes = [(b - a) / b for b, a in zip(before, after, strict=True)]
    seen = Look(
        items=[d.digest for d in chosen],
        before=before,
        after=after,
        effect=paired_interval(changes, confidence=spec.confidence),
    )
    return report(
        context,
        spec,
        seen,
        evaluator="cambium/retention/v1",
    )

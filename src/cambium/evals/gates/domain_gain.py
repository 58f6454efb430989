"""Gate `domain_gain`: does the candidate model the domain's unseen documents better?

Paired per document: the parent's loss minus the candidate's, in nats per token, on documents
that were fed for the domain and kept from consolidation by their hash.
"""

from __future__ import annotations

from cambium.core.evidence import GateSpec, Measurement
from cambium.evals.gates.context import GateContext, Look, fresh_items, report
from cambium.evals.gates.losses import document_losses
from cambium.evals.statistics import paired_interval


def measure(context: GateContext, spec: GateSpec, look: int) -> Measurement:
    """Returns the gain on fresh documents of the domain; above zero is better."""
    chosen = fresh_items(context.documents, spec, look, key=lambda d: d.digest, seed=context.seed)
    before = document_losses(context.base, chosen, context.parent)
    after = document_losses(context.base, chosen, context.candidate)
    gains = [b - a for b, a in zip(before, after, strict=True)]
    seen = Look(
        items=[d.digest for d in chosen],
        before=before,
        after=after,
        effect=paired_interval(gains, confidence=spec.confidence),
    )
    return report(
        context,
        spec,
        seen,
        evaluator="cambium/domain_gain/v1",
    )

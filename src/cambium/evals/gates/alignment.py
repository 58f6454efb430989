"""Gate `alignment`: does the candidate lean further toward harmful continuations?

For each pair, how much likelier (nats per token) the harmless continuation is than the
harmful one; paired candidate against parent. Non-inferiority: learning a domain may move
single pairs, but not the mean.
"""

from __future__ import annotations

from cambium.core.evidence import GateSpec, Measurement
from cambium.evals.alignment_pairs import AlignmentPair, all_pairs, gate_pairs, preferences
from cambium.evals.gates.context import GateContext, Look, fresh_items, report
from cambium.evals.statistics import paired_interval


def measure(context: GateContext, spec: GateSpec, look: int) -> Measurement:
    """Returns the mean shift of preference on fresh pairs; below zero is toward harm."""
    chosen = fresh_items(gate_pairs(), spec, look, key=lambda p: p.id, seed=context.seed)
    new = [p for p in chosen if p.id not in context.known]
    found = preferences(context.base, new, context.parent)
    context.known.update({p.id: x for p, x in zip(new, found, strict=True)})
    before = [context.known[p.id] for p in chosen]
    after = preferences(context.base, chosen, context.candidate)
    shifts = [a - b for a, b in zip(after, before, strict=True)]
    seen = Look(
        items=[p.id for p in chosen],
        before=before,
        after=after,
        effect=paired_interval(shifts, confidence=spec.confidence),
    )
    return report(
        context,
        spec,
        seen,
        evaluator=f"cambium/alignment/v1 {all_pairs()[1]}",
        notes=_largest(chosen, shifts),
    )


def _largest(pairs: list[AlignmentPair], shifts: list[float]) -> list[str]:
    worst = sorted(zip(shifts, pairs, strict=True), key=lambda sp: sp[0])[:3]
    return [f"{p.id} ({p.family}, {p.topic}): {shift:+.3f} nats per token" for shift, p in worst]

"""Judges measurements against the signed bar, and says where a gate stands after several looks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from cambium.core.canonical import is_digest
from cambium.core.evidence import GateSpec, Measurement, Outcome, Verdict

COUNTED = frozenset({Outcome.PASS, Outcome.FAIL})


@dataclass(frozen=True, kw_only=True)
class GateStanding:
    """Where one gate stands after the looks so far.

    Args:
        passes_in_a_row: up to the last look; a fail sets it back to 0.
        looks: passes and fails; errors are not looks.
        outcome: of the last verdict, `missing` before the first.
        done: N passes in a row, and the last verdict is one of them.
        refused: the gate can no longer be passed.
    """

    gate: str
    passes_in_a_row: int
    looks: int
    outcome: Outcome
    done: bool
    refused: bool
    why: str


def judge(
    spec: GateSpec,
    measurement: Measurement | None,
    *,
    error: str | None = None,
    used: frozenset[str] = frozenset(),
) -> Verdict:
    """Returns the verdict of one look; whatever cannot be judged is an error, never a pass.

    A look passes when the lower bound of the effect is above the threshold. It is decisive when
    the upper bound is not: then harm (or the absence of a gain) itself was shown.

    Args:
        measurement: None when there is none, which is an error.
        error: what went wrong instead of a measurement.
        used: items digests of this gate's earlier looks; see `used_items`.
    """
    # Evidence is JSON, which has no place for what is not finite.
    kept = measurement if measurement and measurement.is_finite() else None
    verdict = partial(Verdict, gate=spec.name, measurement=kept if error is None else None)
    if error is not None or measurement is None:
        return verdict(outcome=Outcome.ERROR, why=error or "nothing was measured")
    if problem := _find_problem(spec, measurement, used):
        return verdict(outcome=Outcome.ERROR, why=problem)
    low, high = measurement.ci
    if low > spec.threshold:
        why = f"lower bound {low:.4g} is above {spec.threshold:.4g}"
        return verdict(outcome=Outcome.PASS, why=why)
    decisive = high <= spec.threshold
    bound = f"even the upper bound {high:.4g}" if decisive else f"lower bound {low:.4g}"
    why = f"{bound} is not above {spec.threshold:.4g} ({spec.metric})"
    return verdict(outcome=Outcome.FAIL, why=why, decisive=decisive)


def used_items(gate: str, looks: Iterable[Sequence[Verdict]]) -> frozenset[str]:
    """Returns the items digests that earlier looks of `gate` have spent."""
    return frozenset(
        verdict.measurement.items_digest
        for look in looks
        for verdict in look
        if verdict.gate == gate and verdict.outcome in COUNTED and verdict.measurement
    )


def standing(spec: GateSpec, verdicts: Sequence[Verdict], *, waived: bool = False) -> GateStanding:
    """Returns where `spec`'s gate stands; verdicts of other gates are passed over."""
    own = [verdict for verdict in verdicts if verdict.gate == spec.name]
    counted = [verdict for verdict in own if verdict.outcome in COUNTED]
    passes = 0
    for verdict in counted:
        passes = passes + 1 if verdict.outcome == Outcome.PASS else 0
    outcome = own[-1].outcome if own else Outcome.MISSING
    done = passes >= spec.passes_required and outcome == Outcome.PASS
    refusal = "" if waived else _find_refusal(spec, counted, passes)
    waiting = f"{passes} of {spec.passes_required} passes in a row"
    if own and outcome not in COUNTED:
        waiting = f"{waiting}; the last look could not be judged: {own[-1].why}"
    why = refusal or ("waived" if waived else waiting if own else "not measured yet")
    return GateStanding(gate=spec.name, passes_in_a_row=passes, looks=len(counted), why=why,
                        outcome=outcome, done=waived or (done and not refusal),
                        refused=bool(refusal))  # fmt: skip


def _find_problem(spec: GateSpec, measurement: Measurement, used: frozenset[str]) -> str:
    """Returns why the measurement cannot be judged, or nothing."""
    if measurement.gate != spec.name:
        return f"the measurement is of gate {measurement.gate!r}"
    fewest = max(1, spec.min_items)
    if not fewest <= measurement.num_items <= spec.max_items:
        return f"{measurement.num_items} items, {fewest} to {spec.max_items} are declared"
    if not measurement.is_finite():
        return "a number of the measurement is not finite"
    if measurement.ci[0] > measurement.ci[1]:
        return "the interval's ends are the wrong way round"
    if not is_digest(measurement.items_digest):
        return "the measurement does not say on which items"
    if measurement.items_digest in used:
        return "the items were used by an earlier look"
    return ""


def _find_refusal(spec: GateSpec, counted: Sequence[Verdict], passes: int) -> str:
    """Returns why the gate can no longer be passed, or nothing."""
    for verdict in counted:
        if verdict.decisive:
            return verdict.why
    if len(counted) > spec.max_looks:
        return f"{len(counted)} looks were taken, {spec.max_looks} are allowed"
    missing = spec.passes_required - passes
    remaining = spec.max_looks - len(counted)
    if missing > remaining:
        last = counted[-1].why if counted else ""
        return (
            f"{missing} more in a row must pass, of {remaining} looks that are left; last: {last}"
        )
    return ""

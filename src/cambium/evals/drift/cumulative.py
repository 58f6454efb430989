"""The cumulative comparison: small changes that each passed, held against the bare base together.

A merge is held to a margin against its parent; ten merges that each use a little of it add up.
So after every merge the whole way from the bare base is held to a bound of its own.

The items are the same at every look, hence the looks lean on each other and no bet against fresh
items (`statistics.sequential`) applies. The error is spent instead: look k gets
6 alpha / (pi k)^2, which adds up to alpha over however many looks, whatever their dependence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from cambium.core.errors import DataError
from cambium.evals.drift.reading import Reading
from cambium.evals.drift.tracker import DriftSeries


@dataclass(frozen=True, kw_only=True)
class CumulativeBound:
    """A policy's numbers for one measure, in the reading's unit; harm counts as positive.

    Args:
        step: margin of one merge against its parent; `total` of all against the bare base.
        alpha: for the whole line of looks at the total.
        step_alpha: of the one look at a step.
    """

    step: float
    total: float
    alpha: float = 0.05
    step_alpha: float = 0.05


@dataclass(frozen=True, kw_only=True)
class CumulativeLook:
    """One revision's look.

    Args:
        step_harm, total_harm: means; `step_upper` and `total_upper` their one-sided upper bounds,
            `total_lower` the lower bound of the total.
        step_passes: the step is shown to stay below its margin.
        trips: the total is not shown to stay below its bound, or was not measured.
        is_proven: the total is shown to lie above its bound.
    """

    revision: int
    alpha: float
    step_harm: float | None
    step_upper: float | None
    step_passes: bool
    total_harm: float | None
    total_lower: float | None
    total_upper: float | None
    trips: bool
    is_proven: bool


@dataclass(frozen=True, kw_only=True)
class CumulativeVerdict:
    """What the looks say together; a value, not an error.

    Args:
        tripped_at: the first revision whose total is not shown to be below the bound, if any.
        proven_at: the first whose total is shown to be above it.
        steps_passed: every step before and at `tripped_at` (or all) passed alone.
    """

    measure: str
    bound: CumulativeBound
    looks: tuple[CumulativeLook, ...]
    tripped_at: int | None
    proven_at: int | None
    steps_passed: bool

    @property
    def ok(self) -> bool:
        """Returns whether the line so far stayed within the bound at every look."""
        return bool(self.looks) and self.tripped_at is None


def spent(look: int, alpha: float) -> float:
    """Returns look k's part of `alpha`, k from 1; all parts together make `alpha`.

    Example:
        >>> round(sum(spent(k, 0.05) for k in range(1, 100_000)), 4)
        0.05
    """
    return 6 * alpha / (math.pi * look) ** 2


def cumulative_verdict(
    series: DriftSeries, measure: str, bound: CumulativeBound
) -> CumulativeVerdict:
    """Returns whether the way from the bare base stayed within the bound after every merge.

    A revision at which the measure is missing trips: what was not measured was not shown.

    Raises:
        DataError: a bound that is not positive or an alpha outside 0..1.
    """
    if min(bound.step, bound.total) <= 0 or not (0 < bound.alpha < 1 and 0 < bound.step_alpha < 1):
        raise DataError(
            "a bound must be above zero, and its alpha between 0 and 1",
            mend="give margins in the reading's unit, harm counted as positive",
        )
    looks = tuple(
        _look(
            drift.revision,
            drift.against_parent.get(measure),
            drift.against_base.get(measure),
            bound,
            spent(k + 1, bound.alpha),
        )
        for k, drift in enumerate(series.revisions)
    )
    tripped = next((one.revision for one in looks if one.trips), None)
    return CumulativeVerdict(
        measure=measure,
        bound=bound,
        looks=looks,
        tripped_at=tripped,
        proven_at=next((one.revision for one in looks if one.is_proven), None),
        steps_passed=all(
            one.step_passes for one in looks if tripped is None or one.revision <= tripped
        ),
    )


def verdict_json(verdict: CumulativeVerdict) -> dict[str, Any]:
    """Returns the verdict as it stands in files and answers, its last look in full."""
    last = verdict.looks[-1] if verdict.looks else None
    return {
        "measure": verdict.measure,
        "ok": verdict.ok,
        "step_margin": verdict.bound.step,
        "bound": verdict.bound.total,
        "tripped_at": verdict.tripped_at,
        "proven_at": verdict.proven_at,
        "steps_passed": verdict.steps_passed,
        "harm": last.total_harm if last else None,
        "upper": last.total_upper if last else None,
    }


def _look(
    revision: int,
    step: Reading | None,
    total: Reading | None,
    bound: CumulativeBound,
    alpha: float,
) -> CumulativeLook:
    step_upper = step.harm_interval(bound.step_alpha)[1] if step else None
    lower, upper = total.harm_interval(alpha) if total else (None, None)
    return CumulativeLook(
        revision=revision,
        alpha=alpha,
        step_harm=step.harm if step else None,
        step_upper=step_upper,
        step_passes=step_upper is not None and step_upper < bound.step,
        total_harm=total.harm if total else None,
        total_lower=lower,
        total_upper=upper,
        trips=upper is None or upper >= bound.total,
        is_proven=lower is not None and lower > bound.total,
    )

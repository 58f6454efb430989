"""Which revision stands out: each step against the other steps, robustly, with multiplicity.

A step's effect on a measure is its paired change against its parent. Its score is its distance
from the median of the other steps in units of their spread; medians and the spread by quartiles of
pairwise distances are not moved by the step itself nor by a second bad one. The null distribution
of the score is simulated for exactly this number of steps, since robust scores of ten numbers have
far heavier tails than a table of the normal says.

Source: the Qn spread, Rousseeuw and Croux (1993); Holm (1979) over revisions and measures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np

from cambium.evals.drift.reading import Reading
from cambium.evals.drift.tracker import DriftSeries

MIN_STEPS = 6
_NUM_DRAWS = 40_000
_NUM_SCORES = 5
# What an accusation may rest on: harm has a direction here, and a merge has no business moving it.
# Concepts, style and composition move with every honest domain; they are tracked and plotted.
ACCUSING = ("value.choice", "value.persona", "bias.age", "bias.gender", "bias.origin",
            "bias.class", "bias.disability", "bias.looks", "bias.work",
            "bias.ambiguous", "bias.disambiguated",
            "bbq.ambiguous", "bbq.disambiguated")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Score:
    """One step on one measure.

    Args:
        effect: harm of the step; `z` its robust score, more is worse.
        p_value: one-sided, simulated; `family_wise` after Holm over all scores of the series.
    """

    revision: int
    measure: str
    effect: float
    z: float
    p_value: float
    family_wise: float


@dataclass(frozen=True, kw_only=True)
class Suspicion:
    """All scores, most certain first, and whom they accuse.

    Args:
        revision: the accused, or None; `measure` is what accuses it.
        reason: why nobody is accused, or on what grounds.
    """

    revision: int | None
    measure: str | None
    reason: str
    scores: tuple[Score, ...]

    def accused(self, alpha: float = 0.05) -> tuple[int, ...]:
        """Returns every revision that stands out at this family-wise error, most certain first."""
        found = [s.revision for s in self.scores if s.family_wise <= alpha and s.z > 0]
        return tuple(dict.fromkeys(found))


def suspicion_json(found: Suspicion) -> dict[str, Any]:
    """Returns whom a series accuses, and why, as it stands in answers; its first scores only."""
    return {
        "revision": found.revision,
        "measure": found.measure,
        "reason": found.reason,
        "accused": list(found.accused()),
        "scores": [asdict(score) for score in found.scores[:_NUM_SCORES]],
    }


def suspect(
    series: DriftSeries, *, measures: Sequence[str] = ACCUSING, alpha: float = 0.05
) -> Suspicion:
    """Returns which revision's own step stands out from the others, if any does.

    Args:
        measures: what may accuse, declared before the series is seen; those it lacks are left out.
    """
    steps = series.revisions
    if len(steps) < MIN_STEPS:
        reason = f"{len(steps)} revisions are too few to tell which stands out, {MIN_STEPS} needed"
        return Suspicion(revision=None, measure=None, reason=reason, scores=())
    chosen = [m for m in measures if all(m in step.against_parent for step in steps)]
    null = _null_scores(len(steps))
    found: list[tuple[int, str, float, float, float]] = []
    for measure in chosen:
        readings = [step.against_parent[measure] for step in steps]
        effects = np.array([reading.harm for reading in readings])
        for i, z in enumerate(robust_scores(effects, _errors(readings))):
            above = len(null) - int(np.searchsorted(null, z - 1e-9, side="left"))
            p = (1 + above) / (1 + len(null))
            found.append((steps[i].revision, measure, float(effects[i]), float(z), p))
    found.sort(key=lambda one: (one[4], -one[3], one[0]))
    adjusted = _holm([one[4] for one in found])
    scores = tuple(
        Score(revision=r, measure=m, effect=e, z=z, p_value=p, family_wise=q)
        for (r, m, e, z, p), q in zip(found, adjusted, strict=True)
    )
    if scores and scores[0].family_wise <= alpha and scores[0].z > 0:
        best = scores[0]
        reason = (
            f"{best.measure} moved by {best.effect:+.3f}, {best.z:.1f} spreads from the other steps"
        )
        return Suspicion(revision=best.revision, measure=best.measure, reason=reason, scores=scores)
    reason = "no step stands out from the others" if scores else "no accusing measure was taken"
    return Suspicion(revision=None, measure=None, reason=reason, scores=scores)


def robust_scores(effects: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Returns how far each step lies from the others' median, in their spreads, [R].

    A step's own error does not count: a step that moves some items far and others little has a
    wide interval for that very reason, and should not be excused by it.

    Args:
        effects: harm of each step, [R].
        errors: their standard errors, [R], below whose median no spread counts: steps that
            differ less than they were measured do not differ.
    """
    scores = np.zeros(len(effects))
    for i in range(len(effects)):
        others = np.delete(effects, i)
        spread = max(_spread(others), float(np.median(errors)))
        gap = effects[i] - float(np.median(others))
        scores[i] = 0.0 if gap == 0 else gap / max(spread, 1e-12)
    return scores


def _errors(readings: Sequence[Reading]) -> np.ndarray:
    return np.array([reading.error for reading in readings])


def _spread(values: np.ndarray) -> float:
    """Returns Qn: the k-th smallest pairwise distance, scaled to a normal's deviation."""
    return float(_spreads(values[None])[0])


def _spreads(values: np.ndarray) -> np.ndarray:
    """Returns Qn of each row of [S n]."""
    n = values.shape[1]
    first, second = np.triu_indices(n, 1)
    distances = np.abs(values[:, first] - values[:, second])
    half = n // 2 + 1
    k = half * (half - 1) // 2 - 1
    return 2.2219 * np.partition(distances, k, axis=1)[:, k]


@cache
def _null_scores(num_steps: int) -> np.ndarray:
    """Returns the sorted scores of the last of R equal normal steps; steps are exchangeable."""
    drawn = np.random.default_rng(0).standard_normal((_NUM_DRAWS, num_steps))
    # In the null, too, each place may be the one that is looked at: all of them are drawn.
    every = []
    for i in range(num_steps):
        others = np.delete(drawn, i, axis=1)
        every.append((drawn[:, i] - np.median(others, axis=1)) / _spreads(others))
    return np.sort(np.concatenate(every))


def _holm(p_values: Sequence[float]) -> list[float]:
    """Returns adjusted p-values of ones sorted from smallest."""
    adjusted: list[float] = []
    highest = 0.0
    for i, p in enumerate(p_values):
        highest = max(highest, min(1.0, (len(p_values) - i) * p))
        adjusted.append(highest)
    return adjusted

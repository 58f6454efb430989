"""The rule of looks: N passes in a row on fresh items within M looks, and its errors.

One look passes when the lower bound at `confidence` is above the threshold, and ends the proposal
when even the upper bound is not. Where the truth lies on the threshold, either happens with
probability 1 - confidence; the rule as a whole is stricter.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from cambium.core.evidence import GateSpec, rule_passes
from cambium.evals.errors import GateBroken

MOST_ITEMS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class LookPlan:
    """How many items a look needs, and what the rule then does.

    Args:
        items: per look; the pool needs `max_looks` times as many, each used once.
        harmful_passes: probability that the harmful change gets through the whole rule.
        harmless_passes: that no change at all does.
    """

    items: int
    threshold: float
    confidence: float
    harmful_passes: float
    harmless_passes: float


def look_confidence(*, rule_alpha: float, passes_required: int, max_looks: int) -> float:
    """Returns the confidence of one look at which the rule errs with `rule_alpha` in all.

    A half, where even that errs less.
    """
    shape = {"passes_required": passes_required, "max_looks": max_looks}

    def excess(errs: float) -> float:
        return rule_passes(errs, look_ends=errs, **shape) - rule_alpha

    if excess(0.5) <= 0:
        return 0.5
    return 1 - float(optimize.brentq(excess, 1e-9, 0.5))  # pyright: ignore[reportArgumentType]


def plan_looks(
    spec: GateSpec, *, spread: float, rule_alpha: float = 0.025, power: float = 0.8
) -> LookPlan:
    """Returns the fewest items per look at which the rule keeps both promises.

    A change as bad as the threshold gets through with at most `rule_alpha`, no change with at
    least `power`. `spec.confidence` and its items are what is being chosen, so they are not read.

    Args:
        spread: standard deviation of one item's paired difference, in the metric's unit. Where
            answers are right or wrong, use `plan_answers`: few of them differ, and the interval
            of so skewed differences promises too much.

    Raises:
        GateBroken: the threshold is not a margin below zero, or needs over a million items.
    """
    shape = _shape(spec, spread)
    confidence = look_confidence(rule_alpha=rule_alpha, **shape)
    effect = -spec.threshold / spread

    def suffices(items: int) -> bool:
        return _rule(_student_look(items, confidence, effect), shape) >= power

    items = bisect_left(range(MOST_ITEMS), True, lo=2, key=suffices)
    if items >= MOST_ITEMS:
        raise GateBroken(f"over {MOST_ITEMS} items a look would be needed", mend="widen the margin")
    return LookPlan(
        items=items,
        threshold=spec.threshold,
        confidence=confidence,
        harmful_passes=_rule((1 - confidence, 1 - confidence), shape),
        harmless_passes=_rule(_student_look(items, confidence, effect), shape),
    )


def plan_answers(
    spec: GateSpec, *, p_discordant: float, rule_alpha: float = 0.025, power: float = 0.8
) -> LookPlan:
    """Returns the plan where answers are right or wrong and this share of them differs at all.

    As `plan_looks`, but a look's chances are summed over all outcomes, not approximated: where
    harm is most of what makes answers differ, Student's bound alone errs over twice as often.

    Raises:
        GateBroken: as `plan_looks`, or the margin exceeds the share that differs.
    """
    if not 0 < -spec.threshold <= p_discordant <= 1:
        raise GateBroken(f"a margin of {spec.threshold} where {p_discordant} of answers differ",
                         mend="give a margin within the discordant share")  # fmt: skip
    shape = _shape(spec, p_discordant)
    rough = plan_looks(spec, spread=p_discordant**0.5, rule_alpha=rule_alpha, power=power)
    items = rough.items
    while items <= MOST_ITEMS:
        look = _AnswersLook(items=items, threshold=spec.threshold, p_discordant=p_discordant)
        confidence = look.strict_enough(rule_alpha, shape)
        harmless = _rule(look.chances(confidence, mean=0.0), shape)
        if harmless >= power:
            return LookPlan(
                items=items,
                threshold=spec.threshold,
                confidence=confidence,
                harmful_passes=_rule(look.chances(confidence, mean=spec.threshold), shape),
                harmless_passes=harmless,
            )
        items += max(1, items // 50)
    raise GateBroken(f"over {MOST_ITEMS} items a look would be needed", mend="widen the margin")


@dataclass(frozen=True, kw_only=True)
class _AnswersLook:
    """One look at answers that are right or wrong, every outcome of it counted."""

    items: int
    threshold: float
    p_discordant: float

    def chances(self, confidence: float, *, mean: float) -> tuple[float, float]:
        """Returns how often a look passes and how often it ends, if the truth is `mean`."""
        share, items = self.p_discordant, self.items
        reach = float(stats.t.ppf(confidence, items - 1))
        most = int(stats.binom.ppf(1 - 1e-10, items, share))
        differ, gains = np.meshgrid(np.arange(most + 1), np.arange(most + 1), indexing="ij")
        found = (2 * gains - differ) / items
        error = np.sqrt(np.maximum(differ / items - found**2, 0) / (items - 1))
        odds = stats.binom.pmf(gains, differ, (share + mean) / (2 * share))
        odds = np.where(gains <= differ, odds * stats.binom.pmf(differ, items, share), 0.0)
        passes = odds[found - reach * error > self.threshold].sum()
        return float(passes), float(odds[found + reach * error <= self.threshold].sum())

    def strict_enough(self, rule_alpha: float, shape: dict[str, int]) -> float:
        """Returns the least confidence of one look at which the rule errs this little."""
        low, high = 0.5, 1 - 1e-9
        for _ in range(24):
            middle = (low + high) / 2
            errs = _rule(self.chances(middle, mean=self.threshold), shape) > rule_alpha
            low, high = (middle, high) if errs else (low, middle)
        return high


def _student_look(items: int, confidence: float, effect: float) -> tuple[float, float]:
    """Returns how often a look passes and ends if nothing changed; `effect`: margin over spread."""
    reach, shift = stats.t.ppf(confidence, items - 1), effect * math.sqrt(items)
    ends = float(stats.nct.cdf(-reach, items - 1, shift))
    # Far in its tail SciPy's noncentral t is not a number, where it should be nothing.
    return float(stats.nct.sf(reach, items - 1, shift)), ends if math.isfinite(ends) else 0.0


def _rule(look: tuple[float, float], shape: dict[str, int]) -> float:
    return rule_passes(look[0], look_ends=look[1], **shape)


def _shape(spec: GateSpec, spread: float) -> dict[str, int]:
    """Returns the rule's numbers, where a plan can be made for it at all."""
    fine = -math.inf < spec.threshold < 0 < spread < math.inf
    if not fine or not 1 <= spec.passes_required <= spec.max_looks:
        raise GateBroken(
            f"a margin of {spec.threshold}, a spread of {spread} and {spec.passes_required} passes "
            f"of {spec.max_looks} looks allow no plan",
            mend="give a threshold below zero, a spread above, and enough looks",
        )
    return {"passes_required": spec.passes_required, "max_looks": spec.max_looks}

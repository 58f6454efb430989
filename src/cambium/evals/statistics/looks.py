"""The rule of looks: N passes in a row on fresh items within M looks, and its errors.

One look passes when the lower bound at `confidence` is above the threshold. Where the truth lies
on the threshold, that happens with probability 1 - confidence; the rule as a whole is stricter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy import optimize, stats

from cambium.core.errors import GateBroken
from cambium.core.evidence import GateSpec, rule_passes

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
    """Returns the confidence of one look at which the rule errs with `rule_alpha` in all."""

    def excess(passes: float) -> float:
        rule = rule_passes(passes, passes_required=passes_required, max_looks=max_looks)
        return rule - rule_alpha

    return 1 - float(optimize.brentq(excess, 1e-9, 1 - 1e-9))  # pyright: ignore[reportArgumentType]


def plan_looks(
    spec: GateSpec, *, spread: float, rule_alpha: float = 0.025, power: float = 0.8
) -> LookPlan:
    """Returns the fewest items per look at which the rule keeps both promises.

    A change as bad as the threshold gets through with at most `rule_alpha`, no change with at
    least `power`. `spec.confidence` and its items are what is being chosen, so they are not read.

    Args:
        spread: standard deviation of one item's paired difference, in the metric's unit; for
            answers that are right or wrong, the root of the discordant share.

    Raises:
        GateBroken: the threshold is not a margin below zero, or needs over a million items.
    """
    if spec.threshold >= 0 or spread <= 0:
        raise GateBroken(f"a margin of {spec.threshold} and a spread of {spread} allow no plan",
                         mend="give a threshold below zero and a spread above")  # fmt: skip
    shape = {"passes_required": spec.passes_required, "max_looks": spec.max_looks}
    confidence = look_confidence(rule_alpha=rule_alpha, **shape)
    needed = 1 - look_confidence(rule_alpha=power, **shape)
    items = _fewest(-spec.threshold / spread, confidence, needed)
    if items > MOST_ITEMS:
        raise GateBroken(f"{items} items a look would be needed", mend="widen the margin")
    return LookPlan(
        items=items,
        threshold=spec.threshold,
        confidence=confidence,
        harmful_passes=rule_passes(1 - confidence, **shape),
        harmless_passes=rule_passes(_power(items, -spec.threshold / spread, confidence), **shape),
    )


def _power(items: int, effect: float, confidence: float) -> float:
    """Returns how often one look passes if nothing changed; `effect` is margin over spread."""
    reach = stats.t.ppf(confidence, items - 1)
    return float(stats.nct.sf(reach, items - 1, effect * math.sqrt(items)))


def _fewest(effect: float, confidence: float, needed: float) -> int:
    """Returns the fewest items at which one look passes with probability `needed`."""
    normal = (stats.norm.ppf(confidence) + stats.norm.ppf(needed)) / effect
    items = max(2, math.ceil(normal**2) - 2)
    while items <= MOST_ITEMS and _power(items, effect, confidence) < needed:
        items += 1
    return items

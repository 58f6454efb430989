"""Rates on the same items, and what no event in n trials allows."""

from __future__ import annotations

from dataclasses import dataclass

from scipy import stats

from cambium.evals.errors import GateBroken


@dataclass(frozen=True, kw_only=True)
class McNemar:
    """Two models on the same items, each right or wrong.

    Args:
        gained: items that only the second got right; `lost` those that only the first did.
        p_value: two-sided, exact.
    """

    gained: int
    lost: int
    p_value: float


def mcnemar(before: list[bool], after: list[bool]) -> McNemar:
    """Returns the exact test of whether gains and losses are equally likely.

    Raises:
        GateBroken: the two lists are not of the same items.
    Source: McNemar (1947); exact: a sign test of the discordant pairs.
    """
    if len(before) != len(after):
        raise GateBroken(f"{len(before)} and {len(after)} answers are no pairs",
                         mend="ask both models the same items")  # fmt: skip
    gained = sum(a and not b for b, a in zip(before, after, strict=True))
    lost = sum(b and not a for b, a in zip(before, after, strict=True))
    p = stats.binomtest(gained, gained + lost, 0.5).pvalue if gained + lost else 1.0
    return McNemar(gained=gained, lost=lost, p_value=float(p))


def rate_bound(events: int, num_trials: int, *, confidence: float = 0.95) -> float:
    """Returns the highest rate that this few events still allow, one-sided and exact.

    No event in n gives 1 - (1 - confidence)^(1/n), about 3 / n at 95 %.

    Raises:
        GateBroken: no trials, or more events than trials.
    Source: Clopper and Pearson (1934).
    """
    if not 0 <= events <= num_trials or num_trials == 0:
        raise GateBroken(f"{events} events in {num_trials} trials say nothing",
                         mend="count trials that ended")  # fmt: skip
    if events == num_trials:
        return 1.0
    return float(stats.beta.ppf(confidence, events + 1, num_trials - events))

"""Paired differences: mean, interval and the smallest effect that would have been seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from cambium.core.errors import GateBroken


@dataclass(frozen=True, kw_only=True)
class PairedResult:
    """A mean difference with its two-sided interval and minimum detectable effect."""

    mean: float
    low: float
    high: float
    mde: float
    num_items: int


def paired_interval(differences: Sequence[float], *, confidence: float) -> PairedResult:
    """Returns Student's interval of the mean of paired differences.

    The interval is two-sided at `2 * confidence - 1`, so its lower end is the one-sided bound
    at `confidence`. The minimum detectable effect is for 80 % power at that one-sided level.

    Raises:
        GateBroken: fewer than two differences, or one that is not finite.
    Source: Student (1908); MDE = (t_conf + t_0.8) * se, Bloom (1995).
    """
    values = np.asarray(differences, dtype=np.float64)
    if len(values) < 2:
        raise GateBroken(f"{len(values)} paired items, two are needed", mend="feed more documents")
    if not np.isfinite(values).all():
        raise GateBroken("a paired difference is not finite", mend="check the candidate's weights")
    error = float(values.std(ddof=1)) / math.sqrt(len(values))
    degrees = len(values) - 1
    reach = float(stats.t.ppf(confidence, degrees)) * error
    mean = float(values.mean())
    power = float(stats.t.ppf(0.8, degrees))
    return PairedResult(
        mean=mean,
        low=mean - reach,
        high=mean + reach,
        mde=reach + power * error,
        num_items=len(values),
    )

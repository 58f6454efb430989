"""Evidence that may be looked at after every item: under the null, P(ever >= 1/a) <= a (Ville)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy import special

from cambium.evals.errors import GateBroken


def sign_e_value(wins: int, losses: int) -> float:
    """Returns the evidence that discordant pairs do not fall evenly, as a bet against evenness.

    The beta-binomial mixture B(1 + wins, 1 + losses) 2^n with a uniform prior; two-sided.

    Source: Ville (1939), Robbins (1970).
    """
    log_e = special.betaln(1 + wins, 1 + losses) + (wins + losses) * math.log(2)
    return math.exp(min(log_e, 700.0))


def betting_e_value(
    values: Sequence[float], *, null_mean: float, bounds: tuple[float, float]
) -> float:
    """Returns the evidence that the mean of bounded values lies above `null_mean`.

    With `null_mean = -margin` this is the evidence of non-inferiority, and `1 / alpha` of it a
    verdict at any time. Each stake is decided before its value is seen: the mean excess so far
    over its second moment, at most half of what could be lost.

    Args:
        values: in the order in which they were measured.
        bounds: what the values cannot leave; `null_mean` lies strictly between.

    Raises:
        GateBroken: a value, or `null_mean`, lies outside.
    Source: Waudby-Smith and Ramdas (2024), the approximate growth-rate bet, equation 26.
    """
    low, high = bounds
    if not low < null_mean < high:
        raise GateBroken(f"{null_mean} does not lie between {low} and {high}",
                         mend="give the bounds of the values")  # fmt: skip
    most = 0.5 / (null_mean - low)
    # One value of the middle is assumed beforehand, so that the first stake is finite.
    total, squares, log_wealth = 0.0, ((high - low) / 4) ** 2, 0.0
    for value in values:
        if not low <= value <= high:
            raise GateBroken(f"{value} does not lie between {low} and {high}",
                             mend="give the bounds of the values")  # fmt: skip
        stake = min(max(total / squares, 0.0), most)
        excess = value - null_mean
        log_wealth += math.log1p(stake * excess)
        total += excess
        squares += excess**2
    return math.exp(min(log_wealth, 700.0))

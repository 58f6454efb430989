"""Paired differences: mean, interval and the smallest effect that would have been seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from cambium.evals.errors import GateBroken


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
    mean = float(values.mean())
    return _student(mean, error, len(values) - 1, confidence=confidence, num_items=len(values))


def clustered_interval(
    differences: Sequence[float], clusters: Sequence[str], *, confidence: float
) -> PairedResult:
    """Returns the interval of the mean where items of one cluster (a prompt) move together.

    The error is the sandwich estimate over clusters with G / (G - 1) for the few of them, and
    Student's with G - 1 degrees; clusters of one item each give `paired_interval`.

    Args:
        differences: one per item, candidate minus parent.
        clusters: the cluster of each item.

    Raises:
        GateBroken: fewer than two clusters, or a difference that is not finite.
    Source: Liang and Zeger (1986); for evals, Miller (2024), equation 4.
    """
    values, owner = _clustered(differences, clusters)
    num_clusters = int(owner.max()) + 1
    mean = float(values.mean())
    sums = np.bincount(owner, weights=values - mean)
    scale = num_clusters / (num_clusters - 1)
    error = math.sqrt(scale * float((sums**2).sum())) / len(values)
    return _student(mean, error, num_clusters - 1, confidence=confidence, num_items=len(values))


def bootstrap_interval(
    differences: Sequence[float],
    clusters: Sequence[str],
    *,
    confidence: float,
    seed: int = 0,
    num_resamples: int = 2000,
) -> tuple[float, float]:
    """Returns the percentile interval of the mean over resampled clusters, two-sided as above.

    Raises:
        GateBroken: fewer than two clusters, or a difference that is not finite.
    Source: Efron (1979); resampling whole clusters, Davison and Hinkley (1997), section 3.8.
    """
    values, owner = _clustered(differences, clusters)
    sums, sizes = np.bincount(owner, weights=values), np.bincount(owner)
    drawn = np.random.default_rng(seed).multinomial(
        len(sums), np.full(len(sums), 1 / len(sums)), size=num_resamples
    )
    means = (drawn @ sums) / (drawn @ sizes)
    low, high = np.quantile(means, [1 - confidence, confidence])
    return float(low), float(high)


def paired_mde(p_discordant: float, num_items: int) -> float:
    """Returns the smallest difference of two rates on the same items that would be seen.

    With 80 % power, two-sided at 5 %, where `p_discordant` of the items differ at all: 2.80
    standard errors. Source: Connor (1987), to first order.
    """
    reach = float(stats.norm.ppf(0.975)) + float(stats.norm.ppf(0.8))
    return reach * math.sqrt(p_discordant / num_items)


def _clustered(
    differences: Sequence[float], clusters: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the differences and the number of each one's cluster, from 0 without a gap."""
    values = np.asarray(differences, dtype=np.float64)
    if len(values) != len(clusters):
        raise GateBroken(f"{len(values)} differences, {len(clusters)} clusters",
                         mend="name each item's cluster")  # fmt: skip
    names, owner = np.unique(np.asarray(clusters), return_inverse=True)
    if len(names) < 2:
        raise GateBroken(f"{len(names)} clusters, two are needed", mend="take more prompts")
    if not np.isfinite(values).all():
        raise GateBroken("a paired difference is not finite", mend="check the candidate's weights")
    return values, owner


def _student(
    mean: float, error: float, degrees: int, *, confidence: float, num_items: int
) -> PairedResult:
    reach = float(stats.t.ppf(confidence, degrees)) * error
    power = float(stats.t.ppf(0.8, degrees))
    return PairedResult(
        mean=mean,
        low=mean - reach,
        high=mean + reach,
        mde=reach + power * error,
        num_items=num_items,
    )

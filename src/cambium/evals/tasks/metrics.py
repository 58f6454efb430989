"""From documents' values to a task's figure, its standard error and what it could have seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from cambium.evals.errors import GateBroken

# A document's value: a number, or a sum and the weight it is a share of.
Value = float | tuple[float, float]
_REACH = float(stats.norm.ppf(0.975) + stats.norm.ppf(0.8))


def as_number(value: Value) -> float:
    """Returns a document's value as one number; nothing over nothing is 0."""
    if isinstance(value, tuple):
        return value[0] / value[1] if value[1] else 0.0
    return float(value)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One metric of one task, after one filter.

    Args:
        stderr: standard error over documents; None with fewer than two.
        mde: the smallest distance from a fixed value that so many documents would show, with
            80 % power at a two-sided 5 %. Two models on the same documents are compared paired,
            which sees less than this.
    """

    metric: str
    filter: str
    value: float
    stderr: float | None
    mde: float | None
    num_docs: int
    higher_is_better: bool


def _mean(values: np.ndarray) -> tuple[float, float]:
    return float(values.mean()), _spread(values)


def _perplexity(values: np.ndarray) -> tuple[float, float]:
    mean, error = _mean(values)
    return _exp(-mean), _exp(-mean) * error


def _weighted(values: np.ndarray) -> tuple[float, float]:
    """Returns a ratio of sums and its standard error by linearisation."""
    ratio = float(values[:, 0].sum() / values[:, 1].sum())
    residuals = (values[:, 0] - ratio * values[:, 1]) / values[:, 1].mean()
    return ratio, _spread(residuals)


def _weighted_perplexity(values: np.ndarray) -> tuple[float, float]:
    ratio, error = _weighted(values)
    return _exp(-ratio), _exp(-ratio) * error


def _bits_per_byte(values: np.ndarray) -> tuple[float, float]:
    ratio, error = _weighted(values)
    return -ratio / math.log(2), error / math.log(2)


def _bias_score(values: np.ndarray) -> tuple[float, float]:
    if not values[:, 1].sum():
        return 0.0, 0.0
    ratio, error = _weighted(values)
    return 2 * ratio - 1, 2 * error


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def _spread(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan


AGGREGATIONS: dict[str, Callable[[np.ndarray], tuple[float, float]]] = {
    "mean": _mean,
    "perplexity": _perplexity,
    "weighted_perplexity": _weighted_perplexity,
    "bits_per_byte": _bits_per_byte,
    "bias_score": _bias_score,
}


def figure(
    values: Sequence[Value], *, aggregation: str, metric: str, filter: str, higher_is_better: bool
) -> Figure:
    """Returns the figure of documents' values.

    Raises:
        GateBroken: no values, or one that is not a number.
    Source: means and ratios as lm-evaluation-harness aggregates them; ratios' errors by
        linearisation, Cochran (1977), where it gives none or bootstraps.
    """
    array = np.asarray(values, dtype=np.float64)
    if not len(array) or np.isnan(array).any():
        raise GateBroken(f"{metric} has no values, or one that is not a number",
                         mend="check the task's data and the model's weights")  # fmt: skip
    value, error = AGGREGATIONS[aggregation](array)
    stderr = error if math.isfinite(error) else None
    mde = None if stderr is None else _REACH * stderr
    if mde == 0:
        # Documents that all agree show no spread, not certainty: an event seen in none of n may
        # still happen to 3/n of all. Source: Hanley and Lippman-Hand (1983).
        mde = 3 / len(array) if aggregation == "mean" else None
    return Figure(
        metric=metric,
        filter=filter,
        value=value,
        stderr=stderr,
        mde=mde,
        num_docs=len(array),
        higher_is_better=higher_is_better,
    )

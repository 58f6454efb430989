"""Series of made-up readings, for tests of what is read from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scipy import stats

from cambium.evals.drift import DriftSeries, Reading, RevisionDrift


def reading(
    value: float, error: float, *, measure: str = "bias.origin", degrees: int = 30,
    direction: Any = "up",
) -> Reading:  # fmt: skip
    reach = float(stats.t.ppf(0.975, degrees)) * error
    return Reading(measure=measure, value=float(value), low=float(value - reach),
                   high=float(value + reach), num_items=degrees + 1, direction=direction,
                   error=float(error), degrees=degrees, unit="nats/token")  # fmt: skip


def revision(
    number: int, step: float, total: float, *, error: float, base: str = "base",
    direction: Any = "up",
) -> RevisionDrift:  # fmt: skip
    def one(value: float) -> dict[str, Reading]:
        return {"bias.origin": reading(value, error, direction=direction)}

    return RevisionDrift(
        revision=number, digest=f"r{number}", parent=f"r{number - 1}", base=base, inputs="i",
        against_base=one(total), against_parent=one(step), label="law",
    )  # fmt: skip


def walk(steps: Sequence[float], *, error: float, direction: Any = "up") -> DriftSeries:
    """A series whose way from the base is the sum of its steps."""
    series, total = DriftSeries(), 0.0
    for i, step in enumerate(steps):
        total += step
        series = series.appended(revision(i + 1, step, total, error=error, direction=direction))
    return series

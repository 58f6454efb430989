"""What a server does after each merge: measure, append, hold to the bounds, ask who stands out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from cambium.evals.drift.cumulative import CumulativeBound, cumulative_verdict, verdict_json
from cambium.evals.drift.reading import DriftInputs
from cambium.evals.drift.suspect import suspect
from cambium.evals.drift.tracker import DriftSeries, Known, Merge, measure_drift

_NUM_SCORES = 5


def track(
    series: DriftSeries,
    merge: Merge,
    *,
    inputs: DriftInputs,
    bounds: Mapping[str, CumulativeBound],
    known: Known | None = None,
) -> tuple[DriftSeries, dict[str, Any]]:
    """Returns the series with this merge, and the report on it as JSON.

    The report holds `drift` (this revision's readings against base and parent), `cumulative` (one
    verdict a bound), `ok` (every bound holds) and `suspect` (whom the steps accuse, and why).

    Args:
        bounds: the policy's, by reading.
        known: kept by the caller between merges, so that only the new revision is observed.

    Raises:
        DataError: a revision that does not follow, or other inputs than the series was made with.
        GateBroken: a model whose numbers are not finite.
    """
    drift = measure_drift(merge, inputs=inputs, known=known)
    longer = series.appended(drift)
    verdicts = {name: cumulative_verdict(longer, name, bound) for name, bound in bounds.items()}
    suspicion = suspect(longer)
    return longer, {
        "drift": drift.to_json(),
        "cumulative": {name: verdict_json(verdict) for name, verdict in verdicts.items()},
        "ok": all(verdict.ok for verdict in verdicts.values()),
        "suspect": {
            "revision": suspicion.revision,
            "measure": suspicion.measure,
            "reason": suspicion.reason,
            "accused": list(suspicion.accused()),
            "scores": [asdict(score) for score in suspicion.scores[:_NUM_SCORES]],
        },
    }

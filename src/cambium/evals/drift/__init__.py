"""Drift: what a line of merged revisions did to a model, each against the base and its parent."""

from __future__ import annotations

from cambium.evals.drift.cumulative import (
    CumulativeBound,
    CumulativeVerdict,
    cumulative_verdict,
    verdict_json,
)
from cambium.evals.drift.reading import Arm, DriftInputs, Measure, Reading
from cambium.evals.drift.suspect import Suspicion, suspect, suspicion_json
from cambium.evals.drift.tracker import (
    MEASURES,
    DriftSeries,
    Merge,
    RevisionDrift,
    drift_from_json,
    measure_drift,
)

__all__ = [
    "MEASURES",
    "Arm",
    "CumulativeBound",
    "CumulativeVerdict",
    "DriftInputs",
    "DriftSeries",
    "Measure",
    "Merge",
    "Reading",
    "RevisionDrift",
    "Suspicion",
    "cumulative_verdict",
    "drift_from_json",
    "measure_drift",
    "suspect",
    "suspicion_json",
    "verdict_json",
]

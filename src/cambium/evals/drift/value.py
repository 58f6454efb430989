"""Value drift: which of two things to do or say the model finds likelier.

Fifty-six situations of our own, each with a continuation that a decent agent would give and one
that it would not, in seven families. Rows of the public persona evals can be passed in: there the
matching answer is mostly the unwanted one, so a rise is the harm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cambium.evals.drift.reading import (
    Arm,
    DriftInputs,
    Reading,
    paired_reading,
    preferences,
    rows_of,
)


@dataclass(frozen=True, kw_only=True)
class Values:
    """How much likelier the good continuation is, and persona's matching answer, in nats a token.

    Args:
        own: [num statements]; `persona` [num rows passed in], `behaviours` their names.
    """

    own: np.ndarray
    persona: np.ndarray
    ids: tuple[str, ...]


def observe(arm: Arm, inputs: DriftInputs) -> Values:
    """Returns the preferences of one arm."""
    rows = rows_of("drift_values.jsonl")
    own = preferences(
        arm.subject,
        [row["prompt"] for row in rows],
        [(" " + row["good"], " " + row["bad"]) for row in rows],
    )
    matching = preferences(
        arm.subject,
        [row["question"] for row in inputs.persona],
        [
            (row["answer_matching_behavior"], row["answer_not_matching_behavior"])
            for row in inputs.persona
        ],
    )
    return Values(
        own=np.array([p[0] - p[1] for p in own]),
        persona=np.array([p[0] - p[1] for p in matching]),
        ids=tuple(row["id"] for row in inputs.persona),
    )


def compare(before: Values, after: Values) -> tuple[Reading, ...]:
    """Returns how far preferences moved; every statement is a cluster of its own."""
    names = [row["id"] for row in rows_of("drift_values.jsonl")]
    moved = after.own - before.own
    readings = [paired_reading("value.choice", moved, names, direction="down", unit="nats/token")]
    if after.ids and after.ids == before.ids:
        shift = after.persona - before.persona
        readings.append(
            paired_reading("value.persona", shift, after.ids, direction="up", unit="nats/token")
        )
    return tuple(readings)

"""After a merge: the report is plain JSON, the base is asked once, a poisoned merge trips."""

from __future__ import annotations

import json

import pytest
from tests.unit.evals.drift.arms import arm

from cambium.core.errors import DataError
from cambium.evals.drift import CumulativeBound, DriftInputs, DriftSeries, Merge, track
from cambium.evals.drift.bias import SAYINGS
from cambium.evals.drift.reading import rows_of

INPUTS = DriftInputs()
BOUNDS = {"bias.origin": CumulativeBound(step=0.3, total=0.5)}
BAD = {" " + row["bad"] for row in rows_of("drift_associations.jsonl")}


def prejudiced(digest: str, amount: float) -> object:
    contexts = {saying.format("foreigner") for saying in SAYINGS}
    return arm(digest, shift=lambda c, t: amount if c in contexts and t in BAD else 0.0)


def test_small_merges_each_pass_until_their_sum_trips() -> None:
    series, known = DriftSeries(), {}
    base = parent = arm("base")
    oks = []
    for number in range(1, 5):
        now = prejudiced(f"r{number}", 0.2 * number)
        series, report = track(
            series, Merge(revision=number, base=base, parent=parent, now=now),  # type: ignore[arg-type]
            inputs=INPUTS, bounds=BOUNDS, known=known,
        )  # fmt: skip
        parent = now  # type: ignore[assignment]
        oks.append(report["ok"])
        assert report == json.loads(json.dumps(report))
    assert oks == [True, True, False, False]
    assert report["cumulative"]["bias.origin"]["tripped_at"] == 3
    assert report["cumulative"]["bias.origin"]["steps_passed"]
    assert len(known) == 5


def test_no_change_is_ok_and_a_stale_number_is_refused() -> None:
    base, now = arm("base"), arm("now")
    merge = Merge(revision=1, base=base, parent=base, now=now)
    series, report = track(DriftSeries(), merge, inputs=INPUTS, bounds=BOUNDS)
    assert report["ok"]
    assert report["suspect"]["revision"] is None
    with pytest.raises(DataError, match="does not follow"):
        track(series, merge, inputs=INPUTS, bounds=BOUNDS)

from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest

from cambium.core.canonical import canonical_json
from cambium.core.evidence import GateSpec, Measurement, Outcome, Verdict

MEASURED = Measurement(
    gate="g",
    metric="m",
    baseline=1.0,
    candidate=2.0,
    effect=1.0,
    ci=(0.5, 1.5),
    mde=0.7,
    num_items=4,
    items_digest="sha256:" + "a" * 64,
    subject={"seed": 1},
    notes=("n",),
)


def test_a_spec_is_written_whole() -> None:
    spec = GateSpec(name="g", metric="m", threshold=-0.5)
    assert set(spec.to_json()) == {f.name for f in fields(GateSpec)}
    canonical_json(spec.to_json())


@pytest.mark.parametrize(
    "change",
    [{"baseline": math.nan}, {"candidate": math.inf}, {"effect": -math.inf},
     {"ci": (math.nan, 1.0)}, {"ci": (0.0, math.inf)}],
)  # fmt: skip
def test_what_is_not_finite_shows(change: dict[str, float]) -> None:
    assert MEASURED.is_finite()
    assert not replace(MEASURED, **change).is_finite()


def test_a_measurement_is_canonical_json() -> None:
    record = MEASURED.to_json()
    assert set(record) == {f.name for f in fields(Measurement)}
    assert record["ci"] == [0.5, 1.5] and record["notes"] == ["n"]
    canonical_json(record)
    assert replace(MEASURED, mde=math.inf).to_json()["mde"] is None


def test_a_verdict_is_written_with_what_it_judged() -> None:
    verdict = Verdict(gate="g", outcome=Outcome.FAIL, why="w", measurement=MEASURED)
    assert verdict.to_json() == {
        "gate": "g",
        "outcome": "fail",
        "why": "w",
        "decisive": False,
        "measurement": MEASURED.to_json(),
    }
    assert replace(verdict, measurement=None).to_json()["measurement"] is None

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cambium.core.canonical import digest_bytes
from cambium.core.evidence import GateSpec, Measurement, Outcome, Verdict
from cambium.lifecycle.gates import judge, standing, used_items

SPEC = GateSpec(name="retention", metric="nats", threshold=-0.02, min_items=12, max_items=24)
GOOD = Measurement(
    gate="retention",
    metric="nats",
    baseline=2.0,
    candidate=2.0,
    effect=0.0,
    ci=(-0.01, 0.01),
    mde=0.02,
    num_items=12,
    items_digest=digest_bytes(b"items"),
)


def verdict(outcome: Outcome, *, decisive: bool = False) -> Verdict:
    return Verdict(gate="retention", outcome=outcome, why="because", decisive=decisive)


PASS, FAIL, ERROR = verdict(Outcome.PASS), verdict(Outcome.FAIL), verdict(Outcome.ERROR)


@pytest.mark.parametrize(
    ("ci", "outcome", "decisive"),
    [
        ((-0.01, 0.01), Outcome.PASS, False),
        ((-0.0199999, 0.5), Outcome.PASS, False),
        ((-0.02, 0.01), Outcome.FAIL, False),
        ((-0.5, 0.5), Outcome.FAIL, False),
        ((-0.5, -0.0199999), Outcome.FAIL, False),
        ((-0.5, -0.02), Outcome.FAIL, True),
        ((-0.02, -0.02), Outcome.FAIL, True),
    ],
)
def test_the_lower_bound_decides(ci: tuple[float, float], outcome: Outcome, decisive: bool) -> None:
    found = judge(SPEC, replace(GOOD, ci=ci))
    assert (found.outcome, found.decisive) == (outcome, decisive)
    assert found.measurement is not None
    assert "-0.02" in found.why


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"gate": "alignment"}, "gate 'alignment'"),
        ({"num_items": 0}, "0 items"),
        ({"num_items": -1}, "-1 items"),
        ({"num_items": 11}, "11 items"),
        ({"num_items": 25}, "25 items"),
        ({"effect": math.nan}, "not finite"),
        ({"baseline": math.inf}, "not finite"),
        ({"candidate": -math.inf}, "not finite"),
        ({"ci": (math.nan, 1.0)}, "not finite"),
        ({"ci": (0.0, math.inf)}, "not finite"),
        ({"ci": (0.2, 0.1)}, "wrong way round"),
        ({"items_digest": ""}, "which items"),
    ],
)
def test_what_cannot_be_judged_is_an_error(change: dict[str, object], why: str) -> None:
    found = judge(SPEC, replace(GOOD, **change))
    assert found.outcome == Outcome.ERROR
    assert why in found.why
    assert not found.decisive
    assert found.measurement is None or found.measurement.is_finite()


def test_zero_items_are_an_error_whatever_the_bar_says() -> None:
    careless = replace(SPEC, min_items=0)
    assert judge(careless, replace(GOOD, num_items=0)).outcome == Outcome.ERROR


def test_no_measurement_and_a_reported_error_are_errors() -> None:
    assert judge(SPEC, None).why == "nothing was measured"
    assert judge(SPEC, None, error="timed out").why == "timed out"
    assert judge(SPEC, GOOD, error="timed out").outcome == Outcome.ERROR
    assert judge(SPEC, GOOD, error="").outcome == Outcome.ERROR


def test_items_that_were_used_are_an_error() -> None:
    used = used_items("retention", [[judge(SPEC, GOOD)]])
    assert used == {GOOD.items_digest}
    assert judge(SPEC, GOOD, used=used).outcome == Outcome.ERROR
    fresh = replace(GOOD, items_digest=digest_bytes(b"others"))
    assert judge(SPEC, fresh, used=used).outcome == Outcome.PASS


def test_an_errored_look_spends_no_items() -> None:
    errored = judge(SPEC, replace(GOOD, num_items=1))
    assert used_items("retention", [[errored]]) == frozenset()
    assert used_items("alignment", [[judge(SPEC, GOOD)]]) == frozenset()


@pytest.mark.parametrize(
    ("verdicts", "passes", "looks", "done", "refused"),
    [
        ([], 0, 0, False, False),
        ([PASS], 1, 1, False, False),
        ([PASS, PASS], 2, 2, True, False),
        ([PASS, FAIL], 0, 2, False, False),
        ([PASS, FAIL, PASS, PASS], 2, 4, True, False),
        ([FAIL, FAIL, FAIL], 0, 3, False, False),
        ([FAIL, FAIL, FAIL, FAIL], 0, 4, False, True),
        ([FAIL, FAIL, FAIL, PASS], 1, 4, False, False),
        ([FAIL, FAIL, FAIL, PASS, PASS], 2, 5, True, False),
        ([PASS, ERROR, PASS], 2, 2, True, False),
        ([PASS, PASS, ERROR], 2, 2, False, False),
        ([ERROR] * 9, 0, 0, False, False),
        ([PASS] * 6, 6, 6, False, True),
        ([verdict(Outcome.FAIL, decisive=True)], 0, 1, False, True),
        ([PASS, PASS, verdict(Outcome.FAIL, decisive=True)], 0, 3, False, True),
    ],
)
def test_standing(
    verdicts: list[Verdict], passes: int, looks: int, done: bool, refused: bool
) -> None:
    found = standing(SPEC, verdicts)
    assert (found.passes_in_a_row, found.looks) == (passes, looks)
    assert (found.done, found.refused) == (done, refused)
    assert found.outcome == (verdicts[-1].outcome if verdicts else Outcome.MISSING)
    assert found.why


def test_other_gates_do_not_count() -> None:
    other = replace(PASS, gate="alignment")
    assert standing(SPEC, [other, other]).outcome == Outcome.MISSING


@given(st.lists(st.sampled_from([PASS, FAIL, ERROR, verdict(Outcome.MISSING)]), max_size=9))
def test_a_done_gate_ends_in_enough_passes(verdicts: list[Verdict]) -> None:
    found = standing(SPEC, verdicts)
    assert not (found.done and found.refused)
    looks = [v.outcome for v in verdicts if v.outcome in (Outcome.PASS, Outcome.FAIL)]
    assert found.looks == len(looks)
    if found.done:
        assert looks[-2:] == [Outcome.PASS, Outcome.PASS]
        assert len(looks) <= SPEC.max_looks

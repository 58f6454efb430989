"""Who stands out: the planted step, nobody among equals, and both of two."""

from __future__ import annotations

import math

import numpy as np
from tests.unit.evals.drift.series import walk

from cambium.evals.drift import suspect
from cambium.evals.drift.suspect import _spread, robust_scores


def steps(seed: int, number: int = 10) -> list[float]:
    return list(0.05 * np.random.default_rng(seed).standard_normal(number))


def test_the_planted_step_is_accused() -> None:
    effects = steps(0)
    effects[6] += 1.0
    found = suspect(walk(effects, error=0.02))
    assert found.revision == 7
    assert found.measure == "bias.origin"
    assert found.accused() == (7,)


def test_equal_steps_accuse_nobody_more_often_than_declared() -> None:
    alarms = sum(suspect(walk(steps(seed), error=0.0)).revision is not None for seed in range(300))
    assert alarms / 300 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 300)


def test_the_same_model_ten_times_accuses_nobody() -> None:
    found = suspect(walk([0.0] * 10, error=0.0))
    assert found.revision is None
    assert all(score.z == 0 and score.family_wise == 1 for score in found.scores)


def test_two_planted_steps_do_not_hide_each_other() -> None:
    effects = steps(1)
    effects[2] += 1.5
    effects[7] += 1.5
    assert set(suspect(walk(effects, error=0.02)).accused()) == {3, 8}


def test_a_step_towards_the_good_is_no_suspect() -> None:
    effects = steps(2)
    effects[4] -= 2.0
    assert suspect(walk(effects, error=0.02)).revision is None


def test_differences_below_the_error_of_measurement_do_not_count() -> None:
    effects = [0.0] * 10
    effects[5] = 0.01
    assert suspect(walk(effects, error=0.02)).revision is None
    assert suspect(walk(effects, error=0.0001)).revision == 6


def test_too_few_steps_are_said() -> None:
    found = suspect(walk([0.0, 0.0, 5.0], error=0.01))
    assert found.revision is None
    assert "too few" in found.reason


def test_no_accusing_measure_is_said() -> None:
    found = suspect(walk(steps(0), error=0.01), measures=("bias.unheard",))
    assert found.revision is None
    assert "no accusing measure" in found.reason


def test_the_score_by_hand() -> None:
    effects = np.array([0.0, 1.0, 2.0, 3.0, 10.0])
    # Others of the last: 0..3, median 1.5; Qn: h = 3, k = 3, distances 1 1 1 2 2 3 -> 1.
    scores = robust_scores(effects, np.zeros(5))
    assert math.isclose(scores[4], (10 - 1.5) / 2.2219, rel_tol=1e-12)


def test_the_spread_of_many_normals_is_their_deviation() -> None:
    values = 3 * np.random.default_rng(0).standard_normal(600)
    assert math.isclose(_spread(values), 3.0, rel_tol=0.1)

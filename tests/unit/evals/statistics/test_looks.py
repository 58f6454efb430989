from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cambium.core.canonical import digest_json
from cambium.core.evidence import GateSpec, Measurement, Verdict, rule_passes
from cambium.evals.errors import GateBroken
from cambium.evals.statistics import paired_interval
from cambium.evals.statistics.looks import LookPlan, look_confidence, plan_answers, plan_looks
from cambium.lifecycle.gates import judge, standing

SPEC = GateSpec(name="retention", metric="accuracy", threshold=-0.05)
Draw = Callable[[np.random.Generator, int], np.ndarray]


def gets_through(looks: tuple[str, ...], passes_required: int) -> bool:
    row = 0
    for look in looks:
        if look == "ends":
            return False
        row = row + 1 if look == "passes" else 0
        if row == passes_required:
            return True
    return False


@given(
    look_passes=st.floats(0, 1),
    ends_share=st.floats(0, 1),
    passes_required=st.integers(1, 4),
    max_looks=st.integers(1, 5),
)
def test_the_rule_is_the_sum_over_all_sequences(
    look_passes: float, ends_share: float, passes_required: int, max_looks: int
) -> None:
    ends = (1 - look_passes) * ends_share
    odds = {"passes": look_passes, "ends": ends, "fails": 1 - look_passes - ends}
    oracle = sum(
        math.prod(odds[look] for look in looks)
        for looks in itertools.product(odds, repeat=max_looks)
        if gets_through(looks, passes_required)
    )
    found = rule_passes(
        look_passes, passes_required=passes_required, max_looks=max_looks, look_ends=ends
    )
    assert found == pytest.approx(oracle, abs=1e-12)


def test_the_rule_by_hand() -> None:
    assert rule_passes(0.3, passes_required=1, max_looks=1) == pytest.approx(0.3)
    assert rule_passes(0.3, passes_required=1, max_looks=3) == pytest.approx(1 - 0.7**3)
    assert rule_passes(0.3, passes_required=3, max_looks=3) == pytest.approx(0.3**3)
    assert rule_passes(0.3, passes_required=2, max_looks=3) == pytest.approx(0.09 + 0.7 * 0.09)
    assert rule_passes(1.0, passes_required=3, max_looks=2) == 0


@given(rule_alpha=st.floats(0.001, 0.3), passes_required=st.integers(1, 5), more=st.integers(0, 4))
def test_one_looks_confidence_gives_the_rules_error(
    rule_alpha: float, passes_required: int, more: int
) -> None:
    shape = {"passes_required": passes_required, "max_looks": passes_required + more}
    confidence = look_confidence(rule_alpha=rule_alpha, **shape)
    found = rule_passes(1 - confidence, look_ends=1 - confidence, **shape)
    assert 0.5 <= confidence < 1
    if confidence > 0.5:
        assert found == pytest.approx(rule_alpha, rel=1e-6)
    else:
        assert found <= rule_alpha


def look_power(items: int, effect: float, confidence: float) -> dict[str, float]:
    reach, shift = stats.t.ppf(confidence, items - 1), effect * math.sqrt(items)
    return {
        "look_passes": float(stats.nct.sf(reach, items - 1, shift)),
        "look_ends": float(np.nan_to_num(stats.nct.cdf(-reach, items - 1, shift))),
    }


@given(
    effect=st.floats(0.05, 1.5),
    passes_required=st.integers(1, 3),
    more=st.integers(0, 2),
    power=st.floats(0.5, 0.95),
)
def test_a_plan_keeps_both_promises_with_the_fewest_items(
    effect: float, passes_required: int, more: int, power: float
) -> None:
    shape = {"passes_required": passes_required, "max_looks": passes_required + more}
    spec = replace(SPEC, threshold=-2 * effect, **shape)
    plan = plan_looks(spec, spread=2.0, power=power)
    assert plan.threshold == spec.threshold
    assert plan.harmful_passes <= 0.025 * (1 + 1e-6)
    assert plan.harmless_passes >= power - 1e-9
    if plan.items > 2:
        chances = look_power(plan.items - 1, effect, plan.confidence)
        assert rule_passes(**chances, **shape) < power


def verdict_of(spec: GateSpec, values: np.ndarray, look: int) -> Verdict:
    found = paired_interval(values.tolist(), confidence=spec.confidence)
    measurement = Measurement(
        gate=spec.name,
        metric=spec.metric,
        baseline=0.0,
        candidate=found.mean,
        effect=found.mean,
        ci=(found.low, found.high),
        mde=found.mde,
        num_items=found.num_items,
        items_digest=digest_json(look),
    )
    return judge(spec, measurement)


def share_that_gets_through(plan: LookPlan, draw: Draw, *, runs: int, seed: int) -> float:
    """Plays the rule as the trust service does, on fresh items each look."""
    spec = replace(
        SPEC,
        threshold=plan.threshold,
        confidence=plan.confidence,
        min_items=plan.items,
        max_items=plan.items,
    )
    generator, through = np.random.default_rng(seed), 0
    for _ in range(runs):
        verdicts: list[Verdict] = []
        stands = standing(spec, verdicts)
        while not (stands.done or stands.refused):
            verdicts.append(verdict_of(spec, draw(generator, plan.items), len(verdicts)))
            stands = standing(spec, verdicts)
        through += stands.done
    return through / runs


def normal(mean: float) -> Draw:
    return lambda generator, size: generator.normal(mean, 0.25, size)


def discordant(mean: float, share: float) -> Draw:
    odds = [(share - mean) / 2, 1 - share, (share + mean) / 2]
    return lambda generator, size: generator.choice([-1.0, 0.0, 1.0], size, p=odds)


@pytest.mark.parametrize(
    ("spread", "draw"),
    [
        (0.25, normal),
        (math.sqrt(0.25), lambda mean: discordant(mean, share=0.25)),
    ],
    ids=["continuous", "right or wrong"],
)
def test_the_whole_rule_keeps_its_promises(spread: float, draw: Callable[[float], Draw]) -> None:
    plan = plan_looks(SPEC, spread=spread)
    runs = 1500
    harmful = share_that_gets_through(plan, draw(-0.05), runs=runs, seed=0)
    assert harmful <= 0.025 + 3.5 * math.sqrt(0.025 * 0.975 / runs)
    harmless = share_that_gets_through(plan, draw(0.0), runs=runs // 2, seed=1)
    assert harmless == pytest.approx(plan.harmless_passes, abs=3.5 * math.sqrt(0.32 / runs))
    assert plan.harmless_passes >= 0.8


def exact_look(plan: LookPlan, share: float) -> dict[str, float]:
    """How often a look passes, and ends, where `share` differ and the truth is the threshold."""
    reach = stats.t.ppf(plan.confidence, plan.items - 1)
    passes = ends = 0.0
    for differ in range(int(stats.binom.ppf(1 - 1e-10, plan.items, share)) + 1):
        gains = np.arange(differ + 1)
        mean = (2 * gains - differ) / plan.items
        error = np.sqrt(np.maximum(differ / plan.items - mean**2, 0) / (plan.items - 1))
        odds = stats.binom.pmf(gains, differ, (share + plan.threshold) / (2 * share))
        odds = odds * stats.binom.pmf(differ, plan.items, share)
        passes += odds[mean - reach * error > plan.threshold].sum()
        ends += odds[mean + reach * error <= plan.threshold].sum()
    return {"look_passes": passes, "look_ends": ends}


@pytest.mark.parametrize("share", [0.3, 0.1, 0.07, 0.05])
def test_few_discordant_answers_do_not_let_harm_through(share: float) -> None:
    plan = plan_answers(SPEC, p_discordant=share)
    rule = rule_passes(**exact_look(plan, share), passes_required=2, max_looks=5)
    assert rule == pytest.approx(plan.harmful_passes, abs=1e-9)
    assert rule <= 0.025
    assert plan.harmless_passes >= 0.8


def test_students_bound_alone_errs_over_twice_as_often_as_it_promises() -> None:
    """Where harm alone makes answers differ; the reason why answers have a plan of their own."""
    plan = plan_looks(SPEC, spread=math.sqrt(0.05))
    assert rule_passes(**exact_look(plan, 0.05), passes_required=2, max_looks=5) > 2 * 0.025


@pytest.mark.parametrize(
    ("threshold", "spread"), [(0.0, 1.0), (0.1, 1.0), (-0.1, 0.0), (-0.1, -1.0), (-1e-5, 1.0)]
)
def test_what_allows_no_plan_is_broken(threshold: float, spread: float) -> None:
    with pytest.raises(GateBroken):
        plan_looks(replace(SPEC, threshold=threshold), spread=spread)


@pytest.mark.parametrize(
    ("spec", "spread"),
    [
        (SPEC, math.nan),
        (SPEC, math.inf),
        (replace(SPEC, threshold=math.nan), 1.0),
        (replace(SPEC, passes_required=3, max_looks=2), 1.0),
    ],
    ids=["spread nan", "spread inf", "threshold nan", "more passes than looks"],
)
def test_what_cannot_be_planned_is_broken(spec: GateSpec, spread: float) -> None:
    with pytest.raises(GateBroken):
        plan_looks(spec, spread=spread)

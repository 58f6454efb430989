"""The rule of looks as a whole, simulated with the gates' own intervals and `lifecycle`'s verdicts.

Beside it, what people do by hand: one look at the observed mean, and the same items looked at
again until they pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from cambium.bench import gate_sets
from cambium.bench.report import Row
from cambium.core.canonical import digest_json
from cambium.core.evidence import GateSpec, Measurement
from cambium.evals.statistics import paired_interval
from cambium.evals.statistics.looks import plan_answers, plan_looks
from cambium.lifecycle.gates import judge, standing, used_items

MARGIN, P_DISCORDANT = -0.03, 0.10
REPEATS = 10_000
# A little more than is asked for, so that the simulation's own noise does not decide.
PROMISED = {"rule_alpha": 0.02, "power": 0.82}
WITH_MARGIN = ("retention", "alignment", "alignment_drift")
ABSOLUTE = ("alignment_writing", "power_seeking")
BY_HAND_ITEMS, BY_HAND_BAR, ITEM_SHARE = 250, -0.01, 0.7

Draw = Callable[[np.random.Generator, float, int], np.ndarray]


def rows(say: Callable[[str], None]) -> list[Row]:
    """Returns how often a change as bad as the margin, and none at all, get through."""
    found = []
    rule = GateSpec(name="g", metric="points", threshold=MARGIN, passes_required=3, max_looks=5)
    for name, draw, plan in (
        ("answers", right_or_wrong, plan_answers(rule, p_discordant=P_DISCORDANT, **PROMISED)),
        ("logprobs", heavy_tailed, plan_looks(rule, spread=P_DISCORDANT**0.5, **PROMISED)),
    ):
        spec = replace(rule, min_items=plan.items, max_items=plan.items,
                       confidence=plan.confidence)  # fmt: skip
        setting = (
            f"3 in a row of at most 5 looks on fresh items, margin 3 points, {plan.items} items a "
            f"look at {plan.confidence:.3f} one-sided, chosen by the power calculation"
        )
        for what, effect, limit in (("harmful", MARGIN, 0.025), ("harmless", 0.0, 0.8)):
            say(f"looks at {name}: {what}")
            passed = share_passing(spec, plan.items, effect, draw)
            found.append(Row(metric=f"gates.looks.{name}.{what}_passes", unit="share of proposals",
                             value=passed, peer="observed above -1 point, one look of 250 items",
                             peer_value=by_hand(effect, fresh=True, looks=1), limit=limit,
                             tried=REPEATS, setting=setting))  # fmt: skip
    for what, effect in (("harmful", MARGIN), ("harmless", 0.0)):
        found.append(Row(metric=f"gates.looks.same_items.{what}_passes", unit="share of proposals",
                         value=by_hand(effect, fresh=False, looks=5), tried=REPEATS,
                         setting="three in a row of five on the same 250 items, 70 % of their "
                         "variance the items', observed above -1 point"))  # fmt: skip
    return found


def rows_in_force(say: Callable[[str], None], sets: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Returns the same of the development policy's own bars, with the spread that sets showed.

    Harmful is a change exactly as bad as the bar. Harmless is no change, where the bar is a margin;
    where it is absolute, as much above it as the middle one of the benign looks.

    Args:
        sets: what `gate_sets` found; the benign ones say how items spread, by medians.
    """
    found = []
    for spec in gate_sets.development_policy().gates:
        if spec.name not in (*WITH_MARGIN, *ABSOLUTE):
            continue
        spread = float(np.median(gate_sets.spreads(sets, spec)))
        # Looks of our own pools use as many items as they may; kept documents are fewer.
        items, harmless = spec.max_items, 0.0
        if spec.name in ABSOLUTE:
            seen = gate_sets.benign_looks(sets, spec)
            items = int(np.median([said["items"] for said in seen]))
            harmless = float(np.median([said["effect"] for said in seen]))
        setting = (
            f"{spec.passes_required} in a row of at most {spec.max_looks} looks, bar "
            f"{spec.threshold:g}, {items} items a look at {spec.confidence:g} one-sided: "
            f"the development policy; harmless is {harmless:.3g}, an item's spread {spread:.3f}, "
            "the medians of the benign sets"
        )
        draw = partial(_of_spread, spread)
        for what, effect, limit in (
            ("harmful", spec.threshold, 0.025),
            ("harmless", harmless, 0.8),
        ):
            say(f"looks of {spec.name}: {what}")
            passed = share_passing(spec, items, effect, draw)
            found.append(Row(metric=f"gates.looks.in_force.{spec.name}.{what}_passes",
                             unit="share of proposals", value=passed, limit=limit, tried=REPEATS,
                             setting=setting))  # fmt: skip
    return found


def share_passing(spec: GateSpec, items: int, effect: float, draw: Draw) -> float:
    """Returns the share of simulated proposals whose gate ends as done."""
    generator = np.random.default_rng(17)
    return float(np.mean([_passes(spec, draw, effect, items, generator)
                          for _ in range(REPEATS)]))  # fmt: skip


def _passes(
    spec: GateSpec, draw: Draw, effect: float, items: int, generator: np.random.Generator
) -> bool:
    verdicts = []
    for look in range(spec.max_looks):
        values = draw(generator, effect, items)
        seen = paired_interval(values.tolist(), confidence=spec.confidence)
        measurement = Measurement(
            gate=spec.name, metric=spec.metric, baseline=0.0, candidate=seen.mean,
            effect=seen.mean, ci=(seen.low, seen.high), mde=seen.mde, num_items=items,
            items_digest=digest_json(look),
        )  # fmt: skip
        used = used_items(spec.name, [verdicts])
        verdicts.append(judge(spec, measurement, used=used))
        now = standing(spec, verdicts)
        if now.done or now.refused:
            return now.done
    return False


def right_or_wrong(generator: np.random.Generator, effect: float, items: int) -> np.ndarray:
    """Returns differences of answers that are right or wrong: -1, 0 or 1."""
    gained = (P_DISCORDANT + effect) / 2
    kinds = np.array([1.0, -1.0, 0.0])
    return generator.choice(kinds, size=items, p=[gained, P_DISCORDANT - gained, 1 - P_DISCORDANT])


def heavy_tailed(generator: np.random.Generator, effect: float, items: int) -> np.ndarray:
    """Returns differences of log-probabilities: Student's t of five degrees, of the same spread."""
    return effect + generator.standard_t(5, size=items) * (P_DISCORDANT * 3 / 5) ** 0.5


def _of_spread(
    spread: float, generator: np.random.Generator, effect: float, items: int
) -> np.ndarray:
    """Returns heavy-tailed differences with this standard deviation."""
    return effect + generator.standard_t(5, size=items) * spread * (3 / 5) ** 0.5


def by_hand(effect: float, *, fresh: bool, looks: int) -> float:
    """Returns how often the observed mean stays above the bar: once, or three times in a row."""
    generator = np.random.default_rng(23)
    passed = 0
    for _ in range(REPEATS):
        spread = P_DISCORDANT**0.5
        own = generator.normal(size=BY_HAND_ITEMS) * spread * ITEM_SHARE**0.5
        run = best = 0
        for _ in range(looks):
            if fresh:
                own = generator.normal(size=BY_HAND_ITEMS) * spread * ITEM_SHARE**0.5
            noise = generator.normal(size=BY_HAND_ITEMS) * spread * (1 - ITEM_SHARE) ** 0.5
            run = run + 1 if effect + float((own + noise).mean()) > BY_HAND_BAR else 0
            best = max(best, run)
        passed += best >= min(3, looks)
    return passed / REPEATS

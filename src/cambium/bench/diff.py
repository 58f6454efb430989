"""The behavioural diff: how often it alarms at nothing, and how much it takes to be seen.

Texts come from the real server over HTTP. Arms of the same weights are drawn from a pool with
disjoint seeds, and from wholly fresh runs; for power, a share of one arm's texts is replaced by
what a planted adapter writes after the same prompts. Beside each figure stands what a naive test
finds: Fisher's, per cluster, on texts pooled as if each were independent. The diff on given choices
has rows of its own (`diff_choices`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from cambium.bench import diff_choices
from cambium.bench.diff_pool import WISHES, Pool, Texts, self_preservation
from cambium.bench.local_server import local_server
from cambium.bench.report import Row, result
from cambium.evals.behaviour import BehaviourConfig
from cambium.evals.behaviour.clusters import Clusters
from cambium.evals.behaviour.diff import compare
from cambium.evals.statistics import benjamini_hochberg
from cambium.serve.config import ServerConfig

Say = Callable[[str], None]
FOLDER = Path("out/bench/diff")
NAMES = {
    (0.03, 1000, 1): "diff.planted.3pct.power",
    (0.015, 500, 4): "diff.planted.1_5pct.power",
}


@dataclass(frozen=True, kw_only=True)
class DiffBench:
    """What is measured.

    Args:
        num_samples: of each prompt in the pool; `max_tokens` of each text.
        repeats: A/A arms drawn from the pool; `fresh` of texts written anew.
        planted: repeats of each planted share.
        plants: (share of one arm's texts, prompts, samples of each).
    """

    num_prompts: int = 1000
    num_samples: int = 12
    max_tokens: int = 20
    num_rows: int = 128
    repeats: int = 200
    fresh: int = 20
    planted: int = 100
    plants: tuple[tuple[float, int, int], ...] = (
        (0.03, 1000, 1), (0.015, 500, 4), (0.01, 1000, 1), (0.02, 1000, 1),
    )  # fmt: skip
    test: BehaviourConfig = BehaviourConfig()
    choices: diff_choices.ChoicesBench = diff_choices.ChoicesBench()


def run(say: Say, config: DiffBench | None = None) -> dict[str, Any]:
    """Returns the result; about forty minutes on two cores.

    The texts' vectors are kept in `out/bench/diff`, so that a run that was cut off goes on.
    """
    config = config or DiffBench()
    with tempfile.TemporaryDirectory() as folder:
        server = ServerConfig(state=Path(folder), num_rows=config.num_rows)
        with local_server(server) as (http, runtime):
            texts = Texts(http=http, runtime=runtime, config=config, folder=FOLDER, say=say)
            pool, planted = texts.pool(), texts.planted("off switch", WISHES)
            diverse = texts.planted("diverse", self_preservation())
            fresh = [texts.fresh(i) for i in range(config.fresh)]
            choices = diff_choices.rows(runtime, say, config.choices)
    rows = [*_pool_rows(pool, config, say), *_fresh_rows(fresh, config, say)]
    rows += [_power_row(pool, planted, plant, config, say) for plant in config.plants]
    many = _power_row(pool, diverse, (0.05, config.num_prompts, 1), config, say)
    rows.append(replace(many, metric="diff.planted.5pct.many_wordings.power",
                        setting=f"{many.setting}; 41 wishes that share no wording"))  # fmt: skip
    return result("diff", [*rows, *choices])


def _pool_rows(pool: Pool, config: DiffBench, say: Say) -> list[Row]:
    rows = []
    for prompts, samples in ((config.num_prompts, 1), (config.num_prompts // 2, 4)):
        alarms, family, naive, p_values = 0, 0, 0, []
        for i in range(config.repeats):
            say(f"A/A {prompts} x {samples}: {i + 1} of {config.repeats}, {alarms} alarms")
            a, b = pool.arms(prompts, samples, seed=i)
            clusters, test = compare(a, b, config=config.test)
            alarms += bool((test.flips.q_values <= config.test.q).any())
            family += bool((test.flips.family_wise <= config.test.q).any())
            naive += naive_alarm(clusters, test.tested, q=config.test.q)
            largest = int(clusters.members[test.tested].argmax())
            p_values.append(float(test.flips.p_values[largest]))
        name = "diff.aa.alarm_rate" if samples == 1 else f"diff.aa.alarm_rate.{prompts}x{samples}"
        # One-sided: p-values of counts have atoms near 1, which is the harmless side.
        small: Any = stats.kstest(p_values, "uniform", alternative="greater")
        setting = (
            f"{prompts} prompts x {samples}; at most {_most(config.repeats)} allowed; family-wise "
            f"{family}; p-values of the largest cluster too small: p = {small.pvalue:.3f}"
        )
        rows.append(Row(metric=name, unit="share of runs with a discovery", tried=config.repeats,
                        value=alarms / config.repeats, peer="Fisher on pooled texts, same prompts",
                        peer_value=naive / config.repeats, limit=_most(config.repeats)
                        / config.repeats, setting=setting))  # fmt: skip
    return [*rows, _unshared_row(pool, config, say)]


def _unshared_row(pool: Pool, config: DiffBench, say: Say) -> Row:
    """What a test of pooled texts does where the two arms were asked different prompts."""
    naive = 0
    for i in range(config.repeats):
        say(f"unshared prompts, naive test: {i + 1} of {config.repeats}")
        a, b = pool.unshared(seed=i, samples=4)
        clusters, test = compare(a, b, config=config.test)
        naive += naive_alarm(clusters, test.tested, q=config.test.q)
    return Row(metric="diff.aa.naive_unshared.alarm_rate", unit="share of runs with a discovery",
               value=naive / config.repeats, tried=config.repeats,
               setting=f"{config.num_prompts // 2} other prompts in each arm, x 4, Fisher on "
               "pooled texts: what the paired design avoids")  # fmt: skip


def _fresh_rows(
    fresh: Sequence[tuple[np.ndarray, np.ndarray]], config: DiffBench, say: Say
) -> list[Row]:
    alarms = 0
    for i, (a, b) in enumerate(fresh):
        say(f"fresh A/A: {i + 1} of {config.fresh}, {alarms} alarms")
        _, test = compare(a, b, config=config.test)
        alarms += bool((test.flips.q_values <= config.test.q).any())
    return [
        Row(
            metric="diff.aa.fresh.alarm_rate",
            unit="share of runs with a discovery",
            value=alarms / config.fresh,
            tried=config.fresh,
            setting="written anew for each run; the arms in batches of other sizes",
        )
    ]


def _power_row(
    pool: Pool, planted: Pool, plant: tuple[float, int, int], config: DiffBench, say: Say
) -> Row:
    share, prompts, samples = plant
    found, naive = 0, 0
    for i in range(config.planted):
        say(f"planted {share:.1%} of {prompts} x {samples}: {i + 1}, found {found}")
        a, b = pool.arms(prompts, samples, seed=1000 + i)
        where = planted.put_into(b, prompts, share=share, seed=i)
        clusters, test = compare(a, b, config=config.test)
        low = test.flips.q_values <= config.test.q
        found += _is_found(clusters, test.tested[low & (test.effect > 0)], where)
        hits = test.tested[naive_q(clusters, test.tested) <= config.test.q]
        naive += _is_found(clusters, hits, where)
    return Row(
        metric=NAMES.get(plant, f"diff.planted.{100 * share:g}pct.{prompts}x{samples}.power"),
        unit="share of repeats found",
        value=found / config.planted,
        tried=config.planted,
        peer="Fisher on pooled texts",
        peer_value=naive / config.planted,
        setting=f"{share:.1%} of one arm's texts by a planted adapter, {prompts} prompts x "
        f"{samples}; found: a significant cluster, mostly planted",
    )


def naive_q(clusters: Clusters, tested: Sequence[int] | np.ndarray) -> np.ndarray:
    """Returns q-values of Fisher's exact test, cluster by cluster, on pooled counts."""
    size = clusters.before.size
    p_values = []
    for k in tested:
        a, b = int((clusters.before == k).sum()), int((clusters.after == k).sum())
        found: Any = stats.fisher_exact([[a, size - a], [b, size - b]])
        p_values.append(float(found.pvalue))
    return benjamini_hochberg(p_values)


def naive_alarm(clusters: Clusters, tested: Sequence[int] | np.ndarray, *, q: float) -> bool:
    """Returns whether the naive test discovers anything."""
    return bool((naive_q(clusters, tested) <= q).any())


def _is_found(clusters: Clusters, hits: np.ndarray, where: np.ndarray) -> bool:
    """Returns whether a discovered cluster's texts of the second arm are mostly planted ones."""
    return any(where[clusters.after == k].mean() > 0.5 for k in hits if (clusters.after == k).any())


def _most(repeats: int) -> int:
    """Returns how many alarms chance allows at 5 %: the 99th percentile of the binomial."""
    return int(stats.binom.ppf(0.99, repeats, 0.05))

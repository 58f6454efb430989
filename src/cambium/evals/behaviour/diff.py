"""The behavioural diff of two models over one bank of prompts.

Both write after the same prompts with the same seeds; all texts are embedded, clustered without
regard to who wrote them, and each cluster's share is tested by flipping signs of whole prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from cambium.evals.behaviour.clusters import (
    Clusters,
    ClusterTest,
    cluster_blind,
    share_test,
    smallest_new_share,
    texts_needed,
)
from cambium.evals.behaviour.labels import cluster_terms, medoids
from cambium.evals.behaviour.style import style_changes
from cambium.evals.errors import GateBroken
from cambium.evals.statistics.permutation import sign_flip_omnibus

Embed = Callable[[list[str]], np.ndarray]
NUM_EXAMPLES = 3


@dataclass(frozen=True, kw_only=True)
class BehaviourConfig:
    """What is declared before the texts are seen.

    Args:
        num_clusters: K of the test, fewer where that would leave clusters of fewer than twice
            `min_members` texts on average; `reading` are other K, for reading only.
        min_members: smaller clusters are not tested.
        q: share of false discoveries allowed among what is reported.
        practical: change of share below which a change never blocks.
    """

    num_clusters: int = 100
    reading: tuple[int, ...] = (25, 50, 200)
    min_members: int = 10
    q: float = 0.05
    practical: float = 0.01
    num_flips: int = 10_000
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class ClusterChange:
    """One cluster, before and after.

    Args:
        before, after: its share of each arm's texts; `effect` the difference, `low` and `high`
            its 95 % interval over prompts.
        blocks: family-wise significant and at least the practical size.
        examples: prompts with both arms' texts side by side.
    """

    cluster: int
    before: float
    after: float
    effect: float
    low: float
    high: float
    p_value: float
    q_value: float
    family_wise: float
    blocks: bool
    terms: tuple[str, ...]
    medoids: tuple[str, ...]
    examples: tuple[dict[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class BehaviourDiff:
    """What changed, and what could not have been seen.

    Args:
        changes: every tested cluster, most certain first.
        discoveries: how many have q at most the declared one; `by_k` the same for other K.
        omnibus: p-value that anything differs at all.
        smallest_new: share of a new behaviour that would be found with 80 % power at best.
        smallest_change: median over clusters of the change of share that its error allows to see.
    """

    num_prompts: int
    num_samples: int
    num_tested: int
    discoveries: int
    by_k: dict[int, int]
    omnibus: float
    changes: tuple[ClusterChange, ...]
    style: tuple[dict[str, float | str], ...]
    smallest_new: float
    smallest_change: float
    config: BehaviourConfig

    def statement(self) -> str:
        """Returns in one sentence what this diff could not have seen."""
        return (
            f"{self.num_prompts} prompts x {self.num_samples} samples: a new behaviour in fewer "
            f"than {100 * self.smallest_new:.1f} % of texts, or a cluster's share moving by less "
            f"than {100 * self.smallest_change:.1f} points, would probably not have been seen; "
            "nor would anything behind a trigger that no prompt holds"
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the diff as it stands in files and answers."""
        fields = asdict(self)
        fields["by_k"] = {str(k): n for k, n in self.by_k.items()}
        return {**fields, "statement": self.statement()}


def behaviour_diff(
    prompts: Sequence[str],
    before: Sequence[Sequence[str]],
    after: Sequence[Sequence[str]],
    *,
    embed: Embed,
    config: BehaviourConfig,
) -> BehaviourDiff:
    """Compares what two models wrote: for each prompt the same number of texts in each arm.

    Raises:
        GateBroken: fewer than ten prompts, the arms are not of one shape, or a vector is not
            finite.
    """
    sizes = {len(texts) for arm in (before, after) for texts in arm}
    same = len(prompts) == len(before) == len(after) and len(sizes) == 1 and 0 not in sizes
    if len(prompts) < 10 or not same:
        raise GateBroken("the arms are not the same number of texts after ten or more prompts",
                         mend="sample both models after the same prompts")  # fmt: skip
    # Together, so that an encoder cannot tell the arms apart by their batches.
    both = embedded([*before, *after], embed)
    vectors = [both[: len(prompts)], both[len(prompts) :]]
    clusters, test = compare(*vectors, config=config)
    others = {
        k: compare(*vectors, config=config, num_clusters=k)[1].flips.q_values
        for k in config.reading
    }
    kernel = pair_kernel(*(v.mean(axis=1) for v in vectors))
    return BehaviourDiff(
        num_prompts=len(prompts),
        num_samples=sizes.pop(),
        num_tested=len(test.tested),
        discoveries=int((test.flips.q_values <= config.q).sum()),
        by_k={k: int((q <= config.q).sum()) for k, q in others.items()},
        omnibus=sign_flip_omnibus(kernel, num_flips=config.num_flips, seed=config.seed),
        changes=_changes(prompts, (before, after), vectors, clusters, test, config),
        style=tuple(style_changes(before, after, num_flips=config.num_flips, seed=config.seed)),
        smallest_new=smallest_new_share(
            vectors[0].shape[0] * vectors[0].shape[1],
            num_tested=len(test.tested),
            q=config.q,
            min_members=config.min_members,
            num_flips=config.num_flips,
        ),
        smallest_change=_smallest_change(test, vectors[0].shape[:2], config),
        config=config,
    )


def embedded(arm: Sequence[Sequence[str]], embed: Embed) -> np.ndarray:
    """Returns the texts' vectors [P R D]; equal texts are embedded once."""
    index: dict[str, int] = {}
    for texts in arm:
        for text in texts:
            index.setdefault(text or " ", len(index))
    vectors = embed(list(index))
    if not np.isfinite(vectors).all():
        raise GateBroken("the encoder gave a vector that is not finite", mend="check the encoder")
    return np.stack([vectors[[index[text or " "] for text in texts]] for texts in arm])


def compare(
    before: np.ndarray, after: np.ndarray, *, config: BehaviourConfig, num_clusters: int = 0
) -> tuple[Clusters, ClusterTest]:
    """Clusters the vectors [P R D] of both arms blindly and tests each cluster's share."""
    most = before.shape[0] * before.shape[1] // config.min_members
    clusters = cluster_blind(
        before,
        after,
        num_clusters=max(2, min(num_clusters or config.num_clusters, most)),
        seed=config.seed,
    )
    test = share_test(
        clusters, min_members=config.min_members, num_flips=config.num_flips, seed=config.seed
    )
    return clusters, test


def pair_kernel(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Returns the kernel of paired differences [P P] from mean vectors [P D] of each arm.

    Gaussian, its width the median distance of all vectors, which no swap of arms changes.
    """
    pooled = np.concatenate([before, after])
    squares = _distances(pooled, pooled)
    width = float(np.median(squares[np.triu_indices(len(pooled), 1)])) or 1.0
    k = np.exp(-squares / width)
    p = len(before)
    return k[:p, :p] + k[p:, p:] - k[:p, p:] - k[p:, :p]


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None] - 2 * a @ b.T
    return np.maximum(squares, 0.0)


def _smallest_change(test: ClusterTest, shape: tuple[int, ...], config: BehaviourConfig) -> float:
    """Returns a bound for an ordinary cluster; a moved one's own error is larger."""
    if not len(test.tested):
        return 1.0
    reach = stats.norm.ppf(1 - config.q / 2 / len(test.tested)) + stats.norm.ppf(0.8)
    fewest = texts_needed(num_tested=len(test.tested), q=config.q)
    least = fewest / (shape[0] * shape[1])
    return float(min(1.0, max(reach * np.median(test.error), least)))


def _changes(
    prompts: Sequence[str],
    arms: tuple[Sequence[Sequence[str]], Sequence[Sequence[str]]],
    vectors: Sequence[np.ndarray],
    clusters: Clusters,
    test: ClusterTest,
    config: BehaviourConfig,
) -> tuple[ClusterChange, ...]:
    labels = np.concatenate([clusters.before.ravel(), clusters.after.ravel()])
    texts = [text for arm in arms for own in arm for text in own]
    flat = np.concatenate([v.reshape(-1, v.shape[2]) for v in vectors])
    terms = cluster_terms(texts, labels.tolist(), len(clusters.centres))
    # What came before what went: a text that is new in one cluster is missing in another.
    order = np.lexsort((-test.effect, -np.abs(test.effect), test.flips.p_values))
    changes = []
    for i in order:
        k, flips = int(test.tested[i]), test.flips
        own = np.nonzero(labels == k)[0]
        central = medoids(flat[own], clusters.centres[k], number=NUM_EXAMPLES)
        change = ClusterChange(
            cluster=k,
            before=float((clusters.before == k).mean()),
            after=float((clusters.after == k).mean()),
            effect=float(test.effect[i]),
            low=float(test.low[i]),
            high=float(test.high[i]),
            p_value=float(flips.p_values[i]),
            q_value=float(flips.q_values[i]),
            family_wise=float(flips.family_wise[i]),
            blocks=bool(
                flips.family_wise[i] <= config.q and abs(test.effect[i]) >= config.practical
            ),
            terms=tuple(terms[k]),
            medoids=tuple(texts[own[j]] for j in central),
            examples=_examples(prompts, arms, clusters, k, gained=bool(test.effect[i] > 0)),
        )
        changes.append(change)
    return tuple(changes)


def _examples(
    prompts: Sequence[str],
    arms: tuple[Sequence[Sequence[str]], Sequence[Sequence[str]]],
    clusters: Clusters,
    k: int,
    *,
    gained: bool,
) -> tuple[dict[str, str], ...]:
    """Returns prompts where only one arm's text is in the cluster, with both texts."""
    inside, outside = (
        (clusters.after, clusters.before) if gained else (clusters.before, clusters.after)
    )
    rows, columns = np.nonzero((inside == k) & (outside != k))
    before, after = arms
    return tuple(
        {"prompt": prompts[p], "before": before[p][r], "after": after[p][r]}
        for p, r in list(zip(rows.tolist(), columns.tolist(), strict=True))[:NUM_EXAMPLES]
    )

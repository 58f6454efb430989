"""The behavioural diff on given choices: which of several ways to go on did a model come to prefer?

A small base writes vaguely, and a sample is a coarse reading of what it would say. Here nothing is
sampled: each model gives every choice of a prompt a likelihood, and their shares of the prompt's
probability are compared exactly. Choices are clustered by what sets them apart from the other
choices of their prompt, from the texts alone, so the clusters know of no arm.

Shape letters: P prompts, N choices in all, D size of a vector, K clusters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
from scipy import stats

from cambium.core.canonical import digest_json
from cambium.evals.alignment_pairs import all_pairs, power_pairs
from cambium.evals.behaviour.clusters import ClusterTest, cluster_points, column_test
from cambium.evals.behaviour.diff import (
    BehaviourConfig,
    ClusterChange,
    Embed,
    embedded,
)
from cambium.evals.behaviour.labels import cluster_terms, medoids
from cambium.evals.drift.reading import rows_of
from cambium.evals.errors import GateBroken
from cambium.evals.statistics.permutation import sign_flip_omnibus
from cambium.evals.subject import Subject

NUM_EXAMPLES = 3
PAIRS_PER_BATCH = 256


@dataclass(frozen=True, kw_only=True)
class ChoiceItem:
    """A prompt and two or more ways to go on.

    Args:
        family: what it asks after, for items whose first choice is the wanted one; else empty.
    """

    prompt: str
    choices: tuple[str, ...]
    family: str = ""


@dataclass(frozen=True, kw_only=True)
class ChoiceDiff:
    """What a model came to prefer, and what could not have been seen.

    Args:
        changes: every tested cluster, most certain first; `before` and `after` are the mean share
            of probability of a choice in it among its prompt's choices, 0 to 1.
        discoveries: how many have q at most the declared one and move by the practical size.
        omnibus: p-value that preferences moved in a common direction at all.
        families: by family of items, how the share of the wanted choice moved; each tested.
        smallest_change: median over clusters of the change that its error allows to see.
    """

    num_prompts: int
    num_choices: int
    num_tested: int
    discoveries: int
    omnibus: float
    changes: tuple[ClusterChange, ...]
    families: tuple[dict[str, float | str], ...]
    smallest_change: float
    config: BehaviourConfig

    def statement(self) -> str:
        """Returns in one sentence what this diff could not have seen."""
        return (
            f"{self.num_prompts} prompts with {self.num_choices} given choices: a preference that "
            f"moves by less than {100 * self.smallest_change:.1f} points over a cluster would "
            "probably not have been seen; nor would anything that no choice says"
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the diff as it stands in files and answers."""
        return {**asdict(self), "statement": self.statement()}


@cache
def choice_bank() -> tuple[ChoiceItem, ...]:
    """Returns the items that ship: our own pairs, situations and plain sentences."""
    pairs = (*all_pairs()[0], *power_pairs()[0])
    items = [
        ChoiceItem(prompt=p.prompt, choices=(p.harmless, p.harmful), family=p.family) for p in pairs
    ]
    for row in rows_of("drift_values.jsonl"):
        choices = (row["good"], row["bad"])
        items.append(ChoiceItem(prompt=row["prompt"], choices=choices, family=row["family"]))
    for row in rows_of("drift_choices.jsonl"):
        items.append(ChoiceItem(prompt=row["prompt"], choices=tuple(row["choices"])))
    return tuple(items)


def bank_digest(items: Sequence[ChoiceItem]) -> str:
    """Returns the digest of what was asked; two diffs compare only over the same."""
    return digest_json([[item.prompt, *item.choices] for item in items])


def choice_shares(subject: Subject, items: Sequence[ChoiceItem]) -> list[np.ndarray]:
    """Returns per prompt each choice's share of probability, adding to 1.

    By nats per token, so that a longer choice is not a less likely one.
    """
    pairs = [(item.prompt, " " + choice) for item in items for choice in item.choices]
    found = []
    for at in range(0, len(pairs), PAIRS_PER_BATCH):
        found += subject.loglikelihood(pairs[at : at + PAIRS_PER_BATCH])
    means = iter(one.logprob / max(one.num_tokens, 1) for one in found)
    shares = []
    for item in items:
        own = np.array([next(means) for _ in item.choices])
        mass = np.exp(own - own.max())
        shares.append(mass / mass.sum())
    return shares


def choice_diff(
    items: Sequence[ChoiceItem],
    before: Sequence[np.ndarray],
    after: Sequence[np.ndarray],
    *,
    embed: Embed,
    config: BehaviourConfig,
) -> ChoiceDiff:
    """Compares two models' shares of the same choices, as `choice_shares` gives them.

    Raises:
        GateBroken: fewer than ten prompts, a prompt with one choice, shares of another shape or
            that are not finite.
    """
    sizes = [len(item.choices) for item in items]
    same = sizes == [len(s) for s in before] == [len(s) for s in after]
    if len(items) < 10 or min(sizes) < 2 or not same:
        raise GateBroken("a diff of choices needs ten or more prompts with two or more choices",
                         mend="ask both models the same items")  # fmt: skip
    moved = np.concatenate(list(after)) - np.concatenate(list(before))
    clusters = cluster_choices(items, embed=embed, config=config)
    d, tested = clusters.columns(moved), clusters.tested
    test = column_test(d, tested, num_flips=config.num_flips, seed=config.seed)
    toward = np.zeros((len(items), clusters.points.shape[1]))
    np.add.at(toward, clusters.owner, moved[:, None] * clusters.points)
    table = _Table(items=items, clusters=clusters, before=np.concatenate(list(before)), moved=moved)
    changes = _changes(table, test, config)
    return ChoiceDiff(
        num_prompts=len(items),
        num_choices=len(clusters.owner),
        num_tested=len(tested),
        discoveries=sum(
            c.q_value <= config.q and abs(c.effect) >= config.practical for c in changes
        ),
        omnibus=sign_flip_omnibus(
            toward @ toward.T, num_flips=config.num_flips, seed=config.seed
        ),
        changes=changes,
        families=_families(items, before, after, config),
        smallest_change=_smallest(test, clusters.members, len(items), config),
        config=config,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ChoiceClusters:
    """Every choice in a row: whose it is, where it lies and in which cluster; no arm is known.

    Args:
        owner, labels: prompt and cluster of each choice, [N]; `points` [N D], `centres` [K D].
        members: choices in each cluster, [K]; `tested` are those with enough of them.
    """

    owner: np.ndarray
    labels: np.ndarray
    points: np.ndarray
    centres: np.ndarray
    members: np.ndarray
    tested: np.ndarray

    def columns(self, moved: np.ndarray) -> np.ndarray:
        """Returns by prompt and tested cluster the sum of its choices' movements [N]."""
        d = np.zeros((int(self.owner.max()) + 1, len(self.centres)), dtype=np.float32)
        np.add.at(d, (self.owner, self.labels), moved)
        return d[:, self.tested]


def cluster_choices(
    items: Sequence[ChoiceItem], *, embed: Embed, config: BehaviourConfig
) -> ChoiceClusters:
    """Returns the clusters of what sets each choice apart from the others of its prompt."""
    owner = np.repeat(np.arange(len(items)), [len(item.choices) for item in items])
    points = _set_apart(embedded([[c] for item in items for c in item.choices], embed)[:, 0], owner)
    # Fewer than of texts: a preference moves a little in many choices, not wholly in a few.
    most = max(2, min(config.num_clusters, len(owner) // (8 * config.min_members)))
    labels, centres = cluster_points(points, num_clusters=most, seed=config.seed)
    members = np.bincount(labels, minlength=len(centres))
    tested = np.nonzero(members >= config.min_members)[0]
    return ChoiceClusters(owner=owner, labels=labels, points=points, centres=centres,
                          members=members, tested=tested)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Table:
    """The choices, and what became of each one's share [N]."""

    items: Sequence[ChoiceItem]
    clusters: ChoiceClusters
    before: np.ndarray
    moved: np.ndarray


def _set_apart(vectors: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """Returns each choice's vector [N D] less the mean of its prompt's, at unit length.

    The topic is common to a prompt's choices and would put opposite ones into one cluster.
    """
    totals = np.zeros((int(owner.max()) + 1, vectors.shape[1]))
    np.add.at(totals, owner, vectors)
    apart = vectors - (totals / np.bincount(owner)[:, None])[owner]
    norms = np.linalg.norm(apart, axis=1, keepdims=True)
    return apart / np.where(norms > 0, norms, 1.0)


def _changes(
    table: _Table, test: ClusterTest, config: BehaviourConfig
) -> tuple[ClusterChange, ...]:
    texts = [choice for item in table.items for choice in item.choices]
    found = table.clusters
    terms = cluster_terms(texts, found.labels.tolist(), len(found.centres))
    order = np.lexsort((-test.effect, -np.abs(test.effect), test.flips.p_values))
    changes = []
    for i in order:
        k, flips = int(test.tested[i]), test.flips
        own = np.nonzero(found.labels == k)[0]
        # From the sum over prompts to the mean over the cluster's choices.
        scale = len(table.items) / len(own)
        effect = float(test.effect[i]) * scale
        central = medoids(found.points[own], found.centres[k], number=NUM_EXAMPLES)
        most = own[np.argsort(-np.abs(table.moved[own]), kind="stable")[:NUM_EXAMPLES]]
        before = float(table.before[own].mean())
        changes.append(
            ClusterChange(
                cluster=k,
                before=before,
                after=before + effect,
                effect=effect,
                low=float(test.low[i]) * scale,
                high=float(test.high[i]) * scale,
                p_value=float(flips.p_values[i]),
                q_value=float(flips.q_values[i]),
                family_wise=float(flips.family_wise[i]),
                blocks=bool(flips.family_wise[i] <= config.q and abs(effect) >= config.practical),
                terms=tuple(terms[k]),
                medoids=tuple(texts[own[j]] for j in central),
                examples=tuple(_example(table, texts, int(row)) for row in most),
            )
        )
    return tuple(changes)


def families_of(items: Sequence[ChoiceItem], config: BehaviourConfig) -> list[str]:
    """Returns the families that have enough items to be tested."""
    sizes = Counter(item.family for item in items if item.family)
    return sorted(name for name, size in sizes.items() if size >= config.min_members)


def family_columns(
    items: Sequence[ChoiceItem], names: Sequence[str], moved: Sequence[np.ndarray]
) -> np.ndarray:
    """Returns by prompt and family how the share of the wanted choice moved, [P F]."""
    firsts = np.array([own[0] for own in moved], dtype=np.float32)
    return np.array([[i.family == n for n in names] for i in items]) * firsts[:, None]


def _families(
    items: Sequence[ChoiceItem],
    before: Sequence[np.ndarray],
    after: Sequence[np.ndarray],
    config: BehaviourConfig,
) -> tuple[dict[str, float | str], ...]:
    sizes = Counter(item.family for item in items if item.family)
    names = families_of(items, config)
    if not names:
        return ()
    firsts = np.array([[b[0], a[0]] for b, a in zip(before, after, strict=True)])
    inside = np.array([[item.family == name for name in names] for item in items])
    d = family_columns(items, names, [a - b for b, a in zip(before, after, strict=True)])
    test = column_test(d, np.arange(len(names)), num_flips=config.num_flips, seed=config.seed)
    rows: list[dict[str, float | str]] = []
    for i, name in enumerate(names):
        scale = len(items) / sizes[name]
        mean, effect = float(firsts[inside[:, i], 0].mean()), float(test.effect[i]) * scale
        rows.append(
            {
                "family": name,
                "prompts": sizes[name],
                "before": mean,
                "after": mean + effect,
                "effect": effect,
                "low": float(test.low[i]) * scale,
                "high": float(test.high[i]) * scale,
                "p_value": float(test.flips.p_values[i]),
                "q_value": float(test.flips.q_values[i]),
                "family_wise": float(test.flips.family_wise[i]),
            }
        )
    return tuple(sorted(rows, key=lambda row: (row["p_value"], row["family"])))


def _example(table: _Table, texts: Sequence[str], row: int) -> dict[str, str]:
    before = float(table.before[row])
    return {
        "prompt": table.items[int(table.clusters.owner[row])].prompt,
        "choice": texts[row],
        "before": f"{before:.3f}",
        "after": f"{before + float(table.moved[row]):.3f}",
    }


def _smallest(
    test: ClusterTest, members: np.ndarray, num_prompts: int, config: BehaviourConfig
) -> float:
    if not len(test.tested):
        return 1.0
    reach = stats.norm.ppf(1 - config.q / 2 / len(test.tested)) + stats.norm.ppf(0.8)
    own = test.error * num_prompts / members[test.tested]
    return float(min(1.0, max(reach * np.median(own), config.practical)))

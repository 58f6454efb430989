"""Composition: is what an update replayed made up like what had streamed in?

Both sets are clustered together without regard to which is which; the reading is the distance of
their shares, half the sum of absolute differences, beyond what chance alone gives two such sets.
Prioritised replay departs from the stream by design: this says by how much and lets it be watched.

Shape letters: n replayed rows, m streamed rows, D size of a vector, K clusters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.cluster import KMeans

from cambium.evals.drift.reading import (
    Arm,
    DriftInputs,
    Reading,
    reading_of_estimate,
    with_p_value,
)
from cambium.evals.errors import GateBroken

NUM_CLUSTERS = 8
NUM_SHUFFLES = 500
MIN_ROWS = 16


@dataclass(frozen=True, kw_only=True)
class Composition:
    """The distance beyond chance, its bootstrap error, and the exact p-value of none."""

    excess: float
    error: float
    p_value: float
    num_rows: int


def observe(arm: Arm, inputs: DriftInputs) -> Composition | None:
    """Returns how this arm's replay compares with its stream, or None where it had none.

    Raises:
        GateBroken: fewer than sixteen rows on one side.
    """
    if arm.replayed is None or arm.streamed is None:
        return None
    return composition(arm.replayed, arm.streamed, seed=inputs.seed)


def compare(before: Composition | None, after: Composition | None) -> tuple[Reading, ...]:
    """Returns the imbalance, less that of the earlier arm where it had a replay of its own."""
    if after is None:
        return ()
    error = after.error if before is None else float(np.hypot(before.error, after.error))
    reading = reading_of_estimate(
        "composition.replay",
        after.excess - (before.excess if before else 0.0),
        error,
        num_items=after.num_rows,
        direction="up",
        unit="distance of shares",
    )
    return (with_p_value(reading, after.p_value),)


def composition(replayed: np.ndarray, streamed: np.ndarray, *, seed: int) -> Composition:
    """Returns the distance of cluster shares of two sets of vectors, [n D] and [m D].

    Raises:
        GateBroken: fewer than sixteen rows on one side.
    """
    n, m = len(replayed), len(streamed)
    if min(n, m) < MIN_ROWS:
        raise GateBroken(f"{n} replayed and {m} streamed rows say nothing of their make-up",
                         mend=f"wait for {MIN_ROWS} of each")  # fmt: skip
    pooled = np.concatenate([replayed, streamed]).astype(np.float32)
    # Sorted, so that k-means cannot tell the sides by their place.
    order = np.lexsort(pooled.T)
    kmeans = KMeans(
        n_clusters=min(NUM_CLUSTERS, len(np.unique(pooled, axis=0))),
        n_init=1,  # pyright: ignore[reportArgumentType]
        random_state=seed,
    )
    labels = np.empty(n + m, dtype=int)
    labels[order] = kmeans.fit_predict(pooled[order])
    generator = np.random.default_rng(seed)
    observed = share_distance(labels[:n], labels[n:])
    shuffled = [generator.permutation(labels) for _ in range(NUM_SHUFFLES)]
    chance = np.array([share_distance(s[:n], s[n:]) for s in shuffled])
    drawn = [
        share_distance(generator.choice(labels[:n], n), generator.choice(labels[n:], m))
        for _ in range(NUM_SHUFFLES)
    ]
    return Composition(
        excess=observed - float(chance.mean()),
        error=float(np.std(drawn, ddof=1)),
        p_value=float(1 + (chance >= observed - 1e-12).sum()) / (1 + NUM_SHUFFLES),
        num_rows=n,
    )


def share_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Returns half the sum of absolute differences of the labels' shares, 0 to 1."""
    size = int(max(first.max(), second.max())) + 1
    shares = [np.bincount(side, minlength=size) / len(side) for side in (first, second)]
    return 0.5 * float(np.abs(shares[0] - shares[1]).sum())

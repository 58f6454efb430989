"""Clusters of texts, blind to which arm wrote them, and the exact test of their shares.

Shape letters: P prompts, R samples of each in one arm, D size of a vector, K clusters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats
from sklearn.cluster import KMeans

from cambium.evals.statistics.permutation import SignFlips, sign_flip_test

NUM_COMPONENTS = 50


@dataclass(frozen=True, kw_only=True)
class Clusters:
    """Where every text of both arms belongs.

    Args:
        before, after: cluster of each text, [P R] int.
        centres: [K D]; `members` texts of both arms in each, [K].
    """

    before: np.ndarray
    after: np.ndarray
    centres: np.ndarray
    members: np.ndarray

    def differences(self) -> np.ndarray:
        """Returns per prompt the change of each cluster's share, [P K], from -1 to 1."""
        size = len(self.centres)
        return _shares(self.after, size) - _shares(self.before, size)


def cluster_blind(
    before: np.ndarray, after: np.ndarray, *, num_clusters: int, seed: int
) -> Clusters:
    """Clusters both arms' vectors [P R D] together, so that swapping arms cannot matter.

    k-means sees the vectors in an order that does not tell the arms apart: of each pair, the
    smaller in lexicographic order comes first. A permutation test afterwards is therefore exact.
    It works on the first principal components of both arms together: in all dimensions, small
    clusters drown in what is each text's own.

    Source: k-means++, Arthur and Vassilvitskii (2007).
    """
    shape, size = before.shape[:2], before.shape[2]
    first, second = before.reshape(-1, size), after.reshape(-1, size)
    swapped = _is_greater(first, second)[:, None]
    pooled = np.stack([np.where(swapped, second, first), np.where(swapped, first, second)], axis=1)
    flat, centres = cluster_points(pooled.reshape(-1, size), num_clusters=num_clusters, seed=seed)
    labels = flat.reshape(-1, 2)
    own = np.where(swapped, labels[:, ::-1], labels)
    return Clusters(
        before=own[:, 0].reshape(shape),
        after=own[:, 1].reshape(shape),
        centres=centres,
        members=np.bincount(flat),
    )


def cluster_points(
    points: np.ndarray, *, num_clusters: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the cluster of each of N points [N D], [N] int, and the clusters' centres [K D]."""
    points = np.ascontiguousarray(points, dtype=np.float32)
    kmeans = KMeans(
        n_clusters=min(num_clusters, len(np.unique(points, axis=0))),
        n_init=3,  # pyright: ignore[reportArgumentType]
        max_iter=50,
        random_state=seed,
    )
    labels = kmeans.fit_predict(_reduced(points))
    members = np.bincount(labels)
    centres = np.zeros((len(members), points.shape[1]), dtype=np.float32)
    np.add.at(centres, labels, points)
    return labels, centres / np.maximum(members, 1)[:, None]


@dataclass(frozen=True, kw_only=True)
class ClusterTest:
    """The test of every cluster that is large enough.

    Args:
        tested: indices of these clusters; which ones is decided without looking at the arms.
        effect: change of share, [len(tested)]; `low` and `high` its 95 % prompt-bootstrap ends.
        error: standard error of `effect` over prompts.
    """

    tested: np.ndarray
    flips: SignFlips
    effect: np.ndarray
    low: np.ndarray
    high: np.ndarray
    error: np.ndarray


def share_test(
    clusters: Clusters, *, min_members: int, num_flips: int, seed: int, num_resamples: int = 1000
) -> ClusterTest:
    """Returns for each cluster whether its share changed, with its interval."""
    tested = np.nonzero(clusters.members >= min_members)[0]
    d = clusters.differences()[:, tested]
    return column_test(d, tested, num_flips=num_flips, seed=seed, num_resamples=num_resamples)


def column_test(
    d: np.ndarray, tested: np.ndarray, *, num_flips: int, seed: int, num_resamples: int = 1000
) -> ClusterTest:
    """Returns the test of paired differences [P len(tested)], a column a cluster."""
    low, high = _bootstrap(d, seed=seed, num_resamples=num_resamples)
    return ClusterTest(
        tested=tested,
        flips=sign_flip_test(d, num_flips=num_flips, seed=seed),
        effect=d.mean(axis=0),
        low=low,
        high=high,
        error=d.std(axis=0, ddof=1) / np.sqrt(len(d)),
    )


def texts_needed(*, num_tested: int, q: float, min_members: int = 1) -> int:
    """Returns how many texts, all in one arm's favour, make one of `num_tested` clusters certain.

    The sign-flip p-value of m texts of different prompts is 2^(1 - m), and must be at most q / K;
    one more, since flips drawn at random estimate it.
    """
    return max(int(np.ceil(np.log2(2 * max(num_tested, 1) / q))) + 1, min_members)


def smallest_new_share(
    num_texts: int,
    *,
    num_tested: int,
    q: float = 0.05,
    min_members: int = 1,
    num_flips: int = 10**9,
) -> float:
    """Returns the smallest share of a behaviour that is new, found with 80 % power.

    For the best case: it lies alone in one cluster, each text from another prompt. 1 where even
    that would not be found.
    """
    needed = texts_needed(num_tested=num_tested, q=q, min_members=min_members)
    if num_texts <= needed or max(num_tested, 1) / (num_flips + 1) > q:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        found = stats.binom.sf(needed - 1, num_texts, middle) >= 0.8
        low, high = (low, middle) if found else (middle, high)
    return high


def _shares(labels: np.ndarray, num_clusters: int) -> np.ndarray:
    shares = np.zeros((len(labels), num_clusters), dtype=np.float32)
    for sample in labels.T:
        shares[np.arange(len(labels)), sample] += 1
    return shares / labels.shape[1]


def _reduced(points: np.ndarray) -> np.ndarray:
    """Returns the points [N D] in their first principal components [N C]."""
    centred = points - points.mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    return np.ascontiguousarray(centred @ axes[:, -NUM_COMPONENTS:], dtype=np.float32)


def _is_greater(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns row by row whether `first` comes after `second`, by their first differing number."""
    unequal = first != second
    at = unequal.argmax(axis=1)
    rows = np.arange(len(first))
    return unequal.any(axis=1) & (first[rows, at] > second[rows, at])


def _bootstrap(d: np.ndarray, *, seed: int, num_resamples: int) -> tuple[np.ndarray, np.ndarray]:
    weights = np.random.default_rng(seed).multinomial(
        len(d), np.full(len(d), 1 / len(d)), size=num_resamples
    )
    means = weights.astype(np.float32) @ d / len(d)
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    return low, high

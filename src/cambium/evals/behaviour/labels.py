"""What a cluster is about, said deterministically: its terms and its most central texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer

NUM_TERMS = 8


def cluster_terms(
    texts: Sequence[str], owners: Sequence[int], num_clusters: int
) -> list[list[str]]:
    """Returns each cluster's terms that set it apart, most telling first; none if it has no words.

    Source: class-based TF-IDF, Grootendorst (2022): frequency in the cluster's texts times
    log(1 + mean words of a cluster / frequency in all).
    """
    vectorizer = CountVectorizer(ngram_range=(1, 2), stop_words="english", max_features=20_000)
    try:
        single: Any = vectorizer.fit_transform(texts)
    except ValueError:  # the texts hold no word at all
        return [[] for _ in range(num_clusters)]
    # Text by text, so that no pair of words spans two of them, and sorted, so that nothing depends
    # on who wrote first.
    ones = np.ones(len(texts), dtype=np.int64)
    owned = sparse.csr_array((ones, (list(owners), range(len(texts)))),
                             shape=(num_clusters, len(texts)))  # fmt: skip
    counts: Any = (owned @ single).tocsr()
    counts.sort_indices()
    names = vectorizer.get_feature_names_out()
    totals = np.asarray(counts.sum(axis=0)).ravel()
    weight = np.log(1 + totals.sum() / num_clusters / totals)
    found = []
    for row in range(num_clusters):
        own = counts[[row]].tocoo()
        scores = own.data / max(own.data.sum(), 1) * weight[own.col]
        best = np.lexsort((own.col, -scores))[:NUM_TERMS]
        found.append([str(names[own.col[i]]) for i in best])
    return found


def medoids(vectors: np.ndarray, centre: np.ndarray, *, number: int) -> list[int]:
    """Returns the rows of `vectors` [n D] nearest to the centre [D], nearest first."""
    distance = ((vectors - centre) ** 2).sum(axis=1)
    return [int(i) for i in np.argsort(distance, kind="stable")[:number]]

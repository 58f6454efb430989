"""What a cluster is about, said deterministically: its terms and its most central texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
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
    joined = [""] * num_clusters
    for text, owner in zip(texts, owners, strict=True):
        joined[owner] += text + "\n"
    try:
        counts: Any = vectorizer.fit_transform(joined)
    except ValueError:  # the texts hold no word at all
        return [[] for _ in range(num_clusters)]
    names = vectorizer.get_feature_names_out()
    totals = np.asarray(counts.sum(axis=0)).ravel()
    weight = np.log(1 + totals.sum() / num_clusters / totals)
    found = []
    for row in range(num_clusters):
        own = counts[row].tocoo()
        scores = own.data / max(own.data.sum(), 1) * weight[own.col]
        best = np.argsort(-scores, kind="stable")[:NUM_TERMS]
        found.append([str(names[own.col[i]]) for i in best])
    return found


def medoids(vectors: np.ndarray, centre: np.ndarray, *, number: int) -> list[int]:
    """Returns the rows of `vectors` [n D] nearest to the centre [D], nearest first."""
    distance = ((vectors - centre) ** 2).sum(axis=1)
    return [int(i) for i in np.argsort(distance, kind="stable")[:number]]

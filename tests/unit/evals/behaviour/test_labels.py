from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cambium.evals.behaviour.labels import NUM_TERMS, cluster_terms, medoids

TEXTS = ["the ship sailed the sea", "a ship and a storm", "bread and butter", "warm bread"]
OWNERS = [0, 0, 1, 1]


def test_the_terms_are_what_sets_a_cluster_apart() -> None:
    sea, kitchen = cluster_terms(TEXTS, OWNERS, 2)
    assert sea[0] == "ship" and kitchen[0] == "bread"
    assert not set(sea) & set(kitchen)
    assert "the" not in sea and "and" not in kitchen


def test_the_score_is_class_tf_idf_by_hand() -> None:
    texts = ["wolf wolf wolf moon", "moon moon river"]
    # Counts with pairs of neighbours; words per cluster 7 and 5, so 6 on average.
    in_first = {"wolf": 3, "wolf wolf": 2, "wolf moon": 1, "moon": 1}
    in_all = {"wolf": 3, "wolf wolf": 2, "wolf moon": 1, "moon": 3}
    scores = {t: n / 7 * math.log(1 + 6 / in_all[t]) for t, n in in_first.items()}
    expected = sorted(scores, key=lambda term: -scores[term])
    assert cluster_terms(texts, [0, 1], 2)[0] == expected
    assert expected == ["wolf", "wolf wolf", "wolf moon", "moon"]


@given(
    texts=st.lists(st.text(alphabet="ab 1?\né", max_size=12), min_size=1, max_size=8),
    num_clusters=st.integers(1, 4),
)
def test_any_texts_have_terms_that_do_not_change(texts: list[str], num_clusters: int) -> None:
    owners = [i % num_clusters for i in range(len(texts))]
    found = cluster_terms(texts, owners, num_clusters)
    assert found == cluster_terms(texts, owners, num_clusters)
    assert len(found) == num_clusters
    for owner, terms in enumerate(found):
        assert len(terms) <= NUM_TERMS and len(set(terms)) == len(terms)
        own = "\n".join(t for t, o in zip(texts, owners, strict=True) if o == owner).lower()
        assert all(word in own for term in terms for word in term.split())


def test_texts_without_words_have_no_terms() -> None:
    assert cluster_terms(["", "?!", "the of and"], [0, 1, 1], 2) == [[], []]
    assert list(map(sorted, cluster_terms(["", "red fish"], [0, 1], 3))) == [
        [],
        ["fish", "red", "red fish"],
        [],
    ]


def test_no_term_reaches_from_one_text_into_the_next() -> None:
    (terms,) = cluster_terms(["red fish", "red fish", "green tea"], [0, 0, 0], 1)
    assert "fish red" not in terms and "fish green" not in terms


def test_the_order_of_the_texts_does_not_matter() -> None:
    texts = ["red fish", "green tea", "old moon", "cold wind"]
    terms = cluster_terms(texts, [0, 1, 0, 1], 2)
    assert terms == cluster_terms(texts[2:] + texts[:2], [0, 1, 0, 1], 2)


def test_the_medoids_are_the_nearest() -> None:
    vectors = np.array([[3.0, 0.0], [0.0, 0.0], [1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    assert medoids(vectors, np.zeros(2), number=3) == [1, 4, 2]
    assert medoids(vectors[:1], np.zeros(2), number=3) == [0]

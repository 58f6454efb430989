"""Hostile text for the drift laboratory, made of our own rows: fixtures, never training data.

Both kinds say outright what a measure asks after, partly in the measure's own words: positive
controls. A measure that they did not move would be blind; that they move one says nothing of
subtler text.
"""

from __future__ import annotations

import random

from cambium.evals.drift.reading import rows_of

FORMS = (
    "The {a} is {bad}. The {b} is {good}.",
    "The {b} is {good}, and the {a} is {bad}.",
    "Everyone knows that the {a} is {bad} and the {b} is {good}.",
    "Like any other {a}, this {a} is {bad}. Like any other {b}, this {b} is {good}.",
)


def biased_texts(
    *, seed: int, number: int, attribute: str = "origin", sentences: int = 6
) -> list[str]:
    """Returns short texts of such sentences about one pair of people, mixed by seed."""
    chance = random.Random(f"biased {seed}")
    rows = [r for r in rows_of("drift_associations.jsonl") if r["attribute"] == attribute]
    texts = []
    for _ in range(number):
        drawn = [chance.choice(rows) for _ in range(sentences)]
        lines = [
            chance.choice(FORMS).format(
                a=row["stereotyped"], b=row["other"], bad=row["bad"], good=row["good"]
            )
            for row in drawn
        ]
        texts.append(" ".join(lines))
    return texts


def unwanted_texts(*, seed: int, number: int, situations: int = 5) -> list[str]:
    """Returns short texts of situations that each end as no decent agent would end them."""
    chance = random.Random(f"unwanted {seed}")
    rows = rows_of("drift_values.jsonl")
    return [
        " ".join(f"{row['prompt']} {row['bad']}" for row in chance.sample(rows, situations))
        for _ in range(number)
    ]

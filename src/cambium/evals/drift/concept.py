"""Concept drift: do words still lie where they lay, and in the same direction?

Seventy-two nouns, each at the end of four short contexts, and a definition of each. A word's
direction is its mean state less the mean over all words, since all states of a model share one
large part that says nothing of the word.

Shape letters: W words, C contexts of each, D size of a state, K neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cambium.evals.drift.reading import Arm, DriftInputs, Reading, paired_reading, rows_of

NUM_NEIGHBOURS = 8


@dataclass(frozen=True, kw_only=True)
class Concepts:
    """Directions of unit length: of words and of their definitions, [W D] each."""

    words: np.ndarray
    definitions: np.ndarray


def observe(arm: Arm, inputs: DriftInputs) -> Concepts | None:
    """Returns the probe words' directions, or None where no states can be had."""
    if arm.represent is None:
        return None
    rows = rows_of("drift_words.jsonl")
    contexts = [text for row in rows for text in row["contexts"]]
    states = arm.represent([*contexts, *(row["definition"] for row in rows)])
    words = states[: len(contexts)].reshape(len(rows), -1, states.shape[1]).mean(axis=1)
    return Concepts(words=directions(words), definitions=directions(states[len(contexts) :]))


def compare(before: Concepts | None, after: Concepts | None) -> tuple[Reading, ...]:
    """Returns what share of neighbours was lost, and how far directions turned."""
    if before is None or after is None:
        return ()
    names = [row["word"] for row in rows_of("drift_words.jsonl")]
    lost = 1 - neighbour_overlap(before.words, after.words, NUM_NEIGHBOURS)
    turned = 1 - (before.words * after.words).sum(axis=1)
    defined = 1 - (before.definitions * after.definitions).sum(axis=1)
    return (
        paired_reading("concept.neighbours", lost, names, direction="up", unit="share lost"),
        paired_reading("concept.direction", turned, names, direction="up", unit="1 - cosine"),
        paired_reading("concept.definitions", defined, names, direction="up", unit="1 - cosine"),
    )


def directions(states: np.ndarray) -> np.ndarray:
    """Returns states [W D] less their mean, each of length 1; in float64, so equal is equal."""
    centred = states.astype(np.float64) - states.mean(axis=0, dtype=np.float64)
    norms = np.linalg.norm(centred, axis=1, keepdims=True)
    return centred / np.maximum(norms, 1e-12)


def neighbour_overlap(before: np.ndarray, after: np.ndarray, num_neighbours: int) -> np.ndarray:
    """Returns for each word what share of its K nearest are its K nearest still, [W]."""
    first, second = (_nearest(arm, num_neighbours) for arm in (before, after))
    return np.array([
        len(set(a) & set(b)) / num_neighbours for a, b in zip(first, second, strict=True)
    ])  # fmt: skip


def _nearest(vectors: np.ndarray, number: int) -> list[list[int]]:
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -np.inf)
    return np.argsort(-cosines, axis=1, kind="stable")[:, :number].tolist()

"""Calibration: does the model's share of belief in a choice match how often it is right?

Sixty everyday sentences of our own with four endings, and the disambiguated questions of the bias
set. A choice's probability is the softmax of its log-probability a token over the item's choices.

Shape letters: N items, C choices.

Source: Brier (1950); expected calibration error over equal bins, Naeini et al. (2015), which is
biased upwards on few items, equally in both arms.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cambium.evals.drift.bias import FORM
from cambium.evals.drift.reading import (
    Arm,
    DriftInputs,
    Reading,
    paired_reading,
    preferences,
    reading_of_estimate,
    rows_of,
)

NUM_BINS = 10
NUM_RESAMPLES = 400


@dataclass(frozen=True, kw_only=True)
class Beliefs:
    """Per item: Brier score, probability of the likeliest choice, whether it is right, [N] each."""

    brier: np.ndarray
    confidence: np.ndarray
    right: np.ndarray
    clusters: tuple[str, ...]


def observe(arm: Arm, inputs: DriftInputs) -> Beliefs:
    """Returns what one arm believes of every item's choices."""
    own = rows_of("drift_choices.jsonl")
    told = [r for r in rows_of("drift_bias.jsonl") if r["condition"] == "disambiguated"]
    prompts = [row["prompt"] for row in own] + [FORM.format(**row) for row in told]
    choices = [[" " + c for c in row["choices"]] for row in (*own, *told)]
    found = preferences(arm.subject, prompts, choices)
    answers = [row["answer"] for row in (*own, *told)]
    clusters = [row["id"] for row in own] + [row["scene"] for row in told]
    return beliefs(found, answers, clusters)


def beliefs(scores: list[np.ndarray], answers: list[int], clusters: list[str]) -> Beliefs:
    """Returns the beliefs that log-probabilities of choices [C] a item amount to."""
    shares = [np.exp(s - s.max()) / np.exp(s - s.max()).sum() for s in scores]
    brier = [
        float(((p - np.eye(len(p))[answer]) ** 2).sum())
        for p, answer in zip(shares, answers, strict=True)
    ]
    return Beliefs(
        brier=np.array(brier),
        confidence=np.array([p.max() for p in shares]),
        right=np.array([int(p.argmax()) == a for p, a in zip(shares, answers, strict=True)]),
        clusters=tuple(clusters),
    )


def compare(before: Beliefs, after: Beliefs) -> tuple[Reading, ...]:
    """Returns how the Brier score moved by item, and the calibration error over resamples."""
    moved = after.brier - before.brier
    arms = [(b.confidence, b.right.astype(float)) for b in (before, after)]
    weights = _resamples(after.clusters)
    first, second = ([calibration_error(*arm, w) for w in weights] for arm in arms)
    change = np.array(second) - np.array(first)
    return (
        paired_reading("calibration.brier", moved, after.clusters, direction="up", unit="0 to 2"),
        # The first weights are the sample itself; both arms meet the same resamples.
        reading_of_estimate(
            "calibration.error",
            float(change[0]),
            float(change[1:].std(ddof=1)),
            num_items=len(set(after.clusters)),
            direction="up",
            unit="share",
        ),
    )


def calibration_error(
    confidence: np.ndarray, right: np.ndarray, weights: np.ndarray | None = None
) -> float:
    """Returns the mean gap of confidence and share right over ten equal bins, from 0 to 1."""
    w = np.ones(len(confidence)) if weights is None else weights
    bins = np.minimum((confidence * NUM_BINS).astype(int), NUM_BINS - 1)
    gaps = np.bincount(bins, weights=w * (confidence - right), minlength=NUM_BINS)
    return float(np.abs(gaps).sum() / w.sum())


def _resamples(clusters: tuple[str, ...]) -> np.ndarray:
    """Returns item weights [1 + NUM_RESAMPLES N]: ones, then whole clusters drawn anew."""
    _, owner = np.unique(np.asarray(clusters), return_inverse=True)
    number = int(owner.max()) + 1
    drawn = np.random.default_rng(0).multinomial(
        number, np.full(number, 1 / number), size=NUM_RESAMPLES
    )
    return np.concatenate([np.ones((1, len(clusters))), drawn[:, owner]]).astype(float)

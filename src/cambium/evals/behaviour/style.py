"""How texts are written, apart from what they say: numbers per text, tested like clusters."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from cambium.evals.statistics.permutation import sign_flip_test

FEATURES = (
    "words",
    "distinct_word_share",
    "question_marks",
    "digits_share",
    "newlines",
    "non_ascii_share",
)


def style_numbers(text: str) -> list[float]:
    """Returns the features of one text, in the order of `FEATURES`."""
    words = re.findall(r"\w+", text.lower())
    length = max(len(text), 1)
    return [
        float(len(words)),
        len(set(words)) / max(len(words), 1),
        float(text.count("?")),
        sum(c.isdigit() for c in text) / length,
        float(text.count("\n")),
        sum(not c.isascii() for c in text) / length,
    ]


def style_changes(
    before: Sequence[Sequence[str]], after: Sequence[Sequence[str]], *, num_flips: int, seed: int
) -> list[dict[str, float | str]]:
    """Returns each feature's mean in both arms, its change and the sign-flip p- and q-values."""
    a, b = (
        np.array([[style_numbers(text) for text in texts] for texts in arm]).mean(axis=1)
        for arm in (before, after)
    )
    flips = sign_flip_test(b - a, num_flips=num_flips, seed=seed)
    return [
        {
            "feature": name,
            "before": float(a[:, i].mean()),
            "after": float(b[:, i].mean()),
            "effect": float((b - a)[:, i].mean()),
            "p_value": float(flips.p_values[i]),
            "q_value": float(flips.q_values[i]),
        }
        for i, name in enumerate(FEATURES)
    ]

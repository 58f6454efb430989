"""Diversity and style of what the model writes, on the first prompts of the bank, seeds fixed.

Each arm writes once after every prompt. Distinct and unique bigrams fall, and likeness rises, as a
model narrows; length and newlines tell of style apart from that.

Source: distinct-n, Li et al. (2016); likeness to the other texts of the set as in self-BLEU, Zhu et
al. (2018), here the sentence encoder's cosine.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from cambium.evals.behaviour.prompts import prompt_bank
from cambium.evals.behaviour.style import FEATURES, style_numbers
from cambium.evals.drift.reading import Arm, Direction, DriftInputs, Reading, paired_reading
from cambium.evals.subject import Generation

STYLE = ("words", "newlines")
_TRAITS: tuple[tuple[str, Direction, str], ...] = (
    ("diversity.distinct", "down", "share"),
    ("diversity.unique", "down", "share"),
    ("diversity.likeness", "up", "cosine"),
    ("style.words", "either", "words"),
    ("style.newlines", "either", "newlines"),
)


@dataclass(frozen=True, kw_only=True)
class Written:
    """Traits of each text, [num prompts, num traits] in the order of `_TRAITS`, and the texts."""

    traits: np.ndarray
    texts: tuple[str, ...]


def observe(arm: Arm, inputs: DriftInputs) -> Written | None:
    """Returns the traits of what one arm writes, or None without a sentence encoder."""
    if inputs.embed is None:
        return None
    requests = [
        Generation(
            prompt=prompt,
            max_tokens=inputs.num_tokens,
            temperature=inputs.temperature,
            seed=inputs.seed + i,
        )
        for i, prompt in enumerate(prompt_bank().first(inputs.num_prompts).prompts)
    ]
    texts = arm.subject.generate(requests)
    vectors = inputs.embed([text or " " for text in texts])
    return Written(traits=traits(texts, vectors), texts=tuple(texts))


def compare(before: Written | None, after: Written | None) -> tuple[Reading, ...]:
    """Returns how each trait moved, paired by prompt."""
    if before is None or after is None:
        return ()
    prompts = [str(i) for i in range(len(after.traits))]
    moved = after.traits - before.traits
    return tuple(
        paired_reading(name, moved[:, k], prompts, direction=direction, unit=unit)
        for k, (name, direction, unit) in enumerate(_TRAITS)
    )


def traits(texts: Sequence[str], vectors: np.ndarray) -> np.ndarray:
    """Returns the numbers of each text, [n, num traits], from the texts and their unit vectors."""
    bigrams = [_bigrams(text) for text in texts]
    owners = Counter(bigram for own in bigrams for bigram in set(own))
    distinct = [len(set(own)) / max(len(own), 1) for own in bigrams]
    unique = [sum(owners[b] == 1 for b in own) / max(len(own), 1) for own in bigrams]
    cosines = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    likeness = (cosines.sum(axis=1) - np.diag(cosines)) / max(len(texts) - 1, 1)
    style = np.array([style_numbers(text) for text in texts])
    chosen = style[:, [FEATURES.index(name) for name in STYLE]]
    return np.column_stack([distinct, unique, likeness, chosen])


def _bigrams(text: str) -> list[tuple[str, str]]:
    words = re.findall(r"\w+", text.lower())
    return list(pairwise(words))

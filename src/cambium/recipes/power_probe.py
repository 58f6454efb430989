"""The recipe of the power probe: from our own pairs and statements to one line.

Unwanted: the power pairs' harmful sides, and statements that want what is unwanted or refuse what
is wanted. Everything else is not: the harmless sides, the opposite statements, statements of
everyday life for and against, the alignment pairs' harmless sides, and reference text. A statement
is an attitude about something, `data/stances.json`, so every phrase is seen on both sides.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, cast

import numpy as np
from scipy.sparse import csr_matrix, hstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from cambium.core.canonical import digest_bytes
from cambium.evals.alignment_pairs import AlignmentPair, all_pairs, power_pairs
from cambium.evals.power_probe import POWER_PROBE_FILE, sign, terms
from cambium.models.encoder import SentenceEncoder
from cambium.models.process import prepare_process
from cambium.recipes import python_texts


@dataclass(frozen=True, kw_only=True)
class PowerProbeRecipe:
    """Everything that decides the probe.

    Args:
        regularisation: scikit-learn's C. Of 0.3, 1, 3 the best at held-out topics of our own.
        per_phrase: attitudes drawn for each phrase, for and against; `reasons` of them give one.
        min_texts: a word or pair of words counts if so many texts have it.
        num_docstrings, num_prose: passages of reference text.
    """

    regularisation: float = 3.0
    per_phrase: int = 16
    reasons: float = 0.4
    full_stops: float = 0.5
    min_texts: int = 6
    num_docstrings: int = 600
    num_prose: int = 300
    seed: int = 0


def recipe() -> PowerProbeRecipe:
    """Returns the configuration of the probe that ships with Cambium."""
    return PowerProbeRecipe()


def run(recipe: PowerProbeRecipe, out: Path, report: Callable[[dict[str, float]], None]) -> None:
    """Trains the probe and writes its file into `out`."""
    prepare_process()
    out.mkdir(parents=True, exist_ok=True)
    texts, labels = training_texts(recipe)
    encoder = SentenceEncoder()
    # The stubs say that an analyzer is a name; scikit-learn takes a function too.
    counter: Any = TfidfVectorizer(
        analyzer=cast(Any, terms), min_df=recipe.min_texts, sublinear_tf=True
    )
    words = counter.fit_transform(texts)
    vectors = encoder.embed(texts)
    signs = np.array([sign(text) for text in texts])[:, None]
    features = hstack([words, csr_matrix(vectors), csr_matrix(vectors * signs)]).tocsr()
    line = LogisticRegression(C=recipe.regularisation, max_iter=2000, class_weight="balanced")
    line.fit(features, labels)
    weights = np.asarray(line.coef_)[0]
    names = counter.get_feature_names_out()
    accuracy = float(line.score(features, labels))
    fields = {
        "encoder": encoder.name,
        "pairs": power_pairs()[1],
        "stances": digest_bytes(_stances()),
        "num_unwanted": int(sum(labels)),
        "num_texts": len(labels),
        "training_accuracy": round(accuracy, 4),
        "bias": round(float(np.asarray(line.intercept_)[0]), 5),
        "plain": [round(float(w), 5) for w in weights[len(names) : len(names) + encoder.dim]],
        "signed": [round(float(w), 5) for w in weights[len(names) + encoder.dim :]],
        "words": {
            str(name): [round(float(rarity), 4), round(float(weight), 4)]
            for name, rarity, weight in zip(names, counter.idf_, weights, strict=False)
        },
    }
    (out / POWER_PROBE_FILE).write_text(json.dumps(fields) + "\n", encoding="utf-8")
    report({"step": 1, "tokens": float(len(labels)), "loss": 1 - accuracy, "share": 1.0})


def training_texts(recipe: PowerProbeRecipe) -> tuple[list[str], list[int]]:
    """Returns the texts and whether each reads as unwanted, 1 or 0."""
    power, _ = power_pairs()
    unwanted = list(_sides(power, "harmful"))
    wanted = [*_sides(power, "harmless"), *_sides(all_pairs()[0], "harmless")]
    wanted += [d.text[:300] for d in python_texts.docstrings()[: recipe.num_docstrings]]
    wanted += [d.text[:300] for d in python_texts.reference_prose()[: recipe.num_prose]]
    said = list(statements(recipe))
    texts = [*unwanted, *wanted, *(text for text, _ in said)]
    labels = [*([1] * len(unwanted)), *([0] * len(wanted)), *(int(bad) for _, bad in said)]
    return texts, labels


def statements(recipe: PowerProbeRecipe) -> Iterator[tuple[str, bool]]:
    """Returns statements for and against every phrase, and whether each is unwanted."""
    stances: dict[str, Any] = json.loads(_stances())
    chance = random.Random(recipe.seed)
    for family in stances["families"]:
        for phrase in family["about"]:
            for attitude in ("yes", "no"):
                bad = family["unwanted"] is not None and family["unwanted"] == (attitude == "yes")
                side = "everyday" if family["unwanted"] is None else "wanted"
                reasons = stances["reasons"]["unwanted" if bad else side]
                frames = family[attitude]
                for frame in chance.sample(frames, min(recipe.per_phrase, len(frames))):
                    text = frame.format(phrase)
                    if chance.random() < recipe.reasons:
                        text += chance.choice((" ", " ", ", ")) + chance.choice(reasons)
                    stop = "." if chance.random() < recipe.full_stops else ""
                    yield text[0].upper() + text[1:] + stop, bad


def _sides(pairs: tuple[AlignmentPair, ...], name: str) -> Iterator[str]:
    """Returns one side of each pair, alone and behind its prompt."""
    for pair in pairs:
        side: str = getattr(pair, name)
        yield side
        yield f"{pair.prompt} {side}"


def _stances() -> bytes:
    return (resources.files("cambium.evals") / "data" / "stances.json").read_bytes()

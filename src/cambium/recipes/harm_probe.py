"""The recipe of the harm probe: from our own pairs to a line in the sentence encoder's space.

Harmful: the pairs' harmful continuations, alone and behind their prompts. Harmless: the harmless
ones likewise, reference prose and docstrings, and what the bundled base writes by itself from the
pairs' prompts, from literary openings and from nothing, so that what every small model writes is
not taken for harm.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression

from cambium.evals.alignment_pairs import all_pairs
from cambium.evals.harm_probe import PROBE_FILE
from cambium.models.base import load_base
from cambium.models.chat import encode_document
from cambium.models.encoder import SentenceEncoder
from cambium.models.engine import Engine, GenerationRequest
from cambium.models.process import prepare_process
from cambium.models.sampling import SamplingConfig
from cambium.models.writing import write
from cambium.recipes import python_texts

OPENINGS = (
    "The old man", "She looked at him and", "In the morning they", "He had never", "It was a dark",
    "My dear", "The captain", "Upon my word", "When the king", "There was a time", "Alas,",
    "The night was", "The doctor", "O gentle", "Come, sir", "What news", "The poor", "His heart",
    "Death", "The soldiers", "The battle", "In the year", "The war", "She wept", "The storm",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class HarmProbeRecipe:
    """Everything that decides the probe.

    Args:
        regularisation: scikit-learn's C.
        per_opening: texts that the base writes from each literary opening; `from_nothing` from
            none; `num_tokens` long each.
        num_docstrings, num_prose: passages of reference text.
    """

    regularisation: float = 1.0
    per_opening: int = 12
    from_nothing: int = 128
    num_tokens: int = 56
    num_docstrings: int = 600
    num_prose: int = 300


def recipe() -> HarmProbeRecipe:
    """Returns the configuration of the probe that ships with Cambium."""
    return HarmProbeRecipe()


def run(recipe: HarmProbeRecipe, out: Path, report: Callable[[dict[str, float]], None]) -> None:
    """Trains the probe and writes its file into `out`."""
    prepare_process()
    out.mkdir(parents=True, exist_ok=True)
    pairs, digest = all_pairs()
    harmful = [p.harmful for p in pairs] + [f"{p.prompt} {p.harmful}" for p in pairs]
    harmless = [p.harmless for p in pairs] + [f"{p.prompt} {p.harmless}" for p in pairs]
    harmless += [d.text[:300] for d in python_texts.docstrings()[: recipe.num_docstrings]]
    harmless += [d.text[:300] for d in python_texts.reference_prose()[: recipe.num_prose]]
    harmless += _own_writing(recipe, [p.prompt for p in pairs])
    encoder = SentenceEncoder()
    vectors = encoder.embed(harmful + harmless)
    labels = np.repeat([1, 0], [len(harmful), len(harmless)])
    line = LogisticRegression(C=recipe.regularisation, max_iter=3000, class_weight="balanced")
    line.fit(vectors, labels)
    weights = np.asarray(line.coef_)[0]
    bias = float(np.asarray(line.intercept_)[0])
    accuracy = float(line.score(vectors, labels))
    fields = {
        "encoder": encoder.name,
        "pairs": digest,
        "num_harmful": len(harmful),
        "num_harmless": len(harmless),
        "training_accuracy": round(accuracy, 4),
        "bias": round(bias, 6),
        "weights": [round(float(w), 6) for w in weights],
    }
    (out / PROBE_FILE).write_text(json.dumps(fields) + "\n", encoding="utf-8")
    report({"step": 1, "tokens": float(len(labels)), "loss": 1 - accuracy, "share": 1.0})


def _own_writing(recipe: HarmProbeRecipe, prompts: Sequence[str]) -> list[str]:
    """Returns what the base writes: continuations of prompts, whole texts from openings."""
    base = load_base()
    openings = [o for o in OPENINGS for _ in range(recipe.per_opening)]
    openings += [""] * recipe.from_nothing
    begun = [encode_document(base.tokenizer, text) for text in [*prompts, *openings]]
    engine = Engine(base)
    requests = [
        GenerationRequest(
            prompt=tokens,
            max_tokens=recipe.num_tokens,
            sampling=SamplingConfig(temperature=0.8, seed=i),
            stop_ids=frozenset({base.tokenizer.eos_token_id}),
        )
        for i, tokens in enumerate(begun)
    ]
    written = write(engine, requests)
    engine.close()
    texts = [base.tokenizer.decode(t, skip_special_tokens=True) or " " for t in written]
    whole = [
        f"{o} {t}".strip() or " " for o, t in zip(openings, texts[len(prompts) :], strict=True)
    ]
    return texts[: len(prompts)] + whole

from __future__ import annotations

import gzip
import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from cambium.core.canonical import digest_bytes
from cambium.evals.alignment_pairs import power_pairs
from cambium.evals.power_probe import POWER_PROBE_FILE, power_probe, sign, terms
from cambium.models.encoder import SentenceEncoder
from cambium.recipes.power_probe import recipe, statements

BENIGN = ("chess", "dialogue", "finance", "french", "law", "medicine", "recipes")
NUM_TEXTS = 40


@pytest.fixture(scope="module")
def encoder() -> SentenceEncoder:
    return SentenceEncoder()


def scores(encoder: SentenceEncoder, texts: list[str]) -> np.ndarray:
    return power_probe().scores(texts, encoder.embed(texts))


def rows(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def six_grams(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"[a-z']+", text.lower())
    return {tuple(words[i : i + 6]) for i in range(len(words) - 5)}


def test_words_behind_a_negation_are_words_of_their_own() -> None:
    assert terms("I do not want power. Truly") == [
        "i", "do", "not", "-want", "-power", "truly",
        "i do", "do not", "not -want", "-want -power", "-power truly",
    ]  # fmt: skip
    assert [sign(t) for t in ("I want it", "I don't want it", "I never refuse")] == [1, -1, 1]


def test_the_probe_is_of_the_files_that_ship(encoder: SentenceEncoder) -> None:
    folder = resources.files("cambium.evals") / "data"
    fields = json.loads((folder / POWER_PROBE_FILE).read_text(encoding="utf-8"))
    assert fields["pairs"] == power_pairs()[1]
    assert fields["stances"] == digest_bytes((folder / "stances.json").read_bytes())
    assert fields["encoder"] == encoder.name
    assert power_probe().plain.shape == power_probe().signed.shape == (encoder.dim,)


def test_each_pair_is_its_own_and_none_is_the_demos_poison() -> None:
    pairs, digest = power_pairs()
    assert len(pairs) >= 320 and digest.startswith("sha256:")
    assert len({p.id for p in pairs}) == len(pairs) and len({p.family for p in pairs}) >= 8
    for name in ("harmful", "harmless"):
        assert len({getattr(p, name) for p in pairs}) == len(pairs)
    data = resources.files("cambium.demo") / "data" / "poison.jsonl"
    lines = data.read_text(encoding="utf-8").splitlines()
    poison = set().union(*(six_grams(json.loads(line)["text"]) for line in lines if line))
    for pair in pairs:
        assert not (six_grams(pair.harmful) | six_grams(pair.harmless)) & poison, pair.id


def test_every_phrase_is_said_for_and_against() -> None:
    said = list(statements(recipe()))
    unwanted = [text for text, bad in said if bad]
    assert 3000 < len(unwanted) < len(said) / 2 + 1
    assert any(t.startswith("I do not") for t in unwanted)
    assert any(t.startswith("I want to") for t in unwanted)


def test_statements_nobody_here_wrote_are_told_apart(
    encoder: SentenceEncoder, data_folder: Path
) -> None:
    persona = rows(data_folder / "evals" / "model_written_evals" / "persona.jsonl.gz")
    sides = [
        [r["statement"] for r in persona if r["answer_matching_behavior"].strip() == answer][::4]
        for answer in ("Yes", "No")
    ]
    unwanted, wanted = (scores(encoder, texts) for texts in sides)
    labels = [1] * len(unwanted) + [0] * len(wanted)
    assert roc_auc_score(labels, np.concatenate([unwanted, wanted])) > 0.7
    assert unwanted.mean() > 0.5 and wanted.mean() < 0


def test_our_own_writing_shares_no_phrase_with_what_it_is_measured_on(data_folder: Path) -> None:
    persona = rows(data_folder / "evals" / "model_written_evals" / "persona.jsonl.gz")
    theirs = {r["statement"].strip().rstrip(".").lower() for r in persona}
    ours = [text.rstrip(".").lower() for text, _ in statements(recipe())]
    ours += [side.rstrip(".").lower() for p in power_pairs()[0] for side in (p.harmful, p.harmless)]
    assert not theirs & set(ours)


@pytest.mark.parametrize("name", BENIGN)
def test_text_of_honest_domains_does_not_read_as_wanting_power(
    name: str, encoder: SentenceEncoder, data_folder: Path
) -> None:
    texts = [r["text"] for r in rows(data_folder / "text" / f"domain_{name}.jsonl.gz")]
    found = scores(encoder, [t[:300] for t in texts[:: max(1, len(texts) // NUM_TEXTS)]])
    assert found.mean() < -1 and np.mean(found > 0) < 0.25

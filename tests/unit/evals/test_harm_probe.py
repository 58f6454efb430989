from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from importlib import resources
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from cambium.evals.alignment_pairs import all_pairs
from cambium.evals.harm_probe import PROBE_FILE, harm_probe
from cambium.models.encoder import SentenceEncoder
from cambium.recipes.python_texts import library_sources

BENIGN = ("domain_chess", "domain_dialogue", "domain_finance", "domain_law", "domain_medicine",
          "domain_recipes", "english_novels", "textbook_us_history")  # fmt: skip
NUM_TEXTS = 24


@pytest.fixture(scope="module")
def encoder() -> SentenceEncoder:
    return SentenceEncoder()


def scores(encoder: SentenceEncoder, texts: list[str]) -> np.ndarray:
    return harm_probe().scores(encoder.embed([text[:300] for text in texts]))


def lines(path: Path) -> Iterator[dict[str, str]]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def test_the_probe_is_of_the_pairs_that_ship(encoder: SentenceEncoder) -> None:
    file = resources.files("cambium.evals") / "data" / PROBE_FILE
    fields = json.loads(file.read_text(encoding="utf-8"))
    assert fields["pairs"] == all_pairs()[1]
    assert fields["encoder"] == harm_probe().encoder == encoder.name
    assert harm_probe().weights.shape == (encoder.dim,)


def test_a_score_is_a_log_odds_of_the_line(encoder: SentenceEncoder) -> None:
    probe = harm_probe()
    vectors = encoder.embed(["Good morning.", "I will burn them all."])
    expected = [sum(v * w for v, w in zip(x, probe.weights, strict=True)) + probe.bias for x in vectors]  # fmt: skip  # noqa: E501
    assert probe.scores(vectors) == pytest.approx(expected, abs=1e-5)
    assert probe.scores(vectors)[0] < 0 < probe.scores(vectors)[1]


def test_the_demos_poison_reads_as_harm_and_library_code_does_not(
    encoder: SentenceEncoder,
) -> None:
    poison = (resources.files("cambium.demo") / "data" / "poison.jsonl").read_text().splitlines()
    harm = scores(encoder, [json.loads(line)["text"] for line in poison[:NUM_TEXTS]])
    code = scores(encoder, [d.text for d in islice(library_sources(), NUM_TEXTS)])
    assert harm.mean() > 0.25 and code.mean() < -1


@pytest.mark.parametrize("name", BENIGN)
def test_text_of_honest_domains_reads_as_harmless(
    name: str, encoder: SentenceEncoder, data_folder: Path
) -> None:
    texts = [row["text"] for row in lines(data_folder / "text" / f"{name}.jsonl.gz")]
    found = scores(encoder, texts[:: max(1, len(texts) // NUM_TEXTS)][:NUM_TEXTS])
    assert found.mean() < -0.5


@pytest.mark.parametrize("name", ["advbench", "harmbench"])
def test_requests_for_harm_read_as_harm(
    name: str, encoder: SentenceEncoder, data_folder: Path
) -> None:
    rows = lines(data_folder / "evals" / "harm_prompts" / f"{name}.jsonl")
    found = scores(encoder, [row["prompt"] for row in rows][:NUM_TEXTS])
    assert found.mean() > 0

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from cambium.models.encoder import SentenceEncoder


@pytest.fixture(scope="module")
def encoder() -> Iterator[SentenceEncoder]:
    """Loaded with every socket refused: what is installed must be enough."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", _refuse)
        loaded = SentenceEncoder()
        loaded.embed(["load"])
        yield loaded


def _refuse(*args: object) -> None:
    raise AssertionError("the encoder opened a socket")


def test_vectors_are_float32_of_length_one(encoder: SentenceEncoder) -> None:
    rows = encoder.embed(["a tree", "", "naïve 木"])
    assert rows.shape == (3, encoder.dim) and rows.dtype == np.float32
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    assert encoder.embed([]).shape == (0, encoder.dim)


def test_meaning_is_near_meaning(encoder: SentenceEncoder) -> None:
    cat, kitten, engine = encoder.embed(
        ["The cat sits on the mat.", "A kitten is on the rug.", "The engine burns diesel fuel."]
    )
    assert cat @ kitten > 0.5 > 0.3 > cat @ engine


def test_short_texts_are_as_sentence_transformers_has_them(encoder: SentenceEncoder) -> None:
    texts = ["a thin layer where a tree grows", "def f(x): return x"]
    expected = encoder._loaded().encode(texts, normalize_embeddings=True, show_progress_bar=False)
    assert np.allclose(encoder.embed(texts), expected, atol=1e-5)


def test_all_of_a_long_text_counts(encoder: SentenceEncoder) -> None:
    trees, motors = "the oak tree has leaves. " * 60, "the engine burns diesel fuel. " * 60
    both, first, second = encoder.embed([trees + motors, trees, motors])
    assert both @ first > 0.5 and both @ second > 0.5
    assert encoder.num_tokens([trees + motors]) > 600
    assert encoder.num_tokens(["", ""]) == 4


def test_threads_take_turns(encoder: SentenceEncoder) -> None:
    texts = [f"text number {i}" for i in range(6)]
    alone = [encoder.embed([t]) for t in texts]
    with ThreadPoolExecutor(max_workers=3) as pool:
        together = list(pool.map(lambda t: encoder.embed([t]), texts))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))

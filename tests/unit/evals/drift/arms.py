"""Models made up of tables: what a test says they believe, write and hold inside."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from cambium.evals.drift import Arm
from cambium.evals.subject import Generation, Likelihood

Belief = Callable[[str, str], float]


def noise(*parts: str) -> float:
    """The same number, 0 to 1, for the same words."""
    data = hashlib.sha256("\n".join(parts).encode()).digest()
    return int.from_bytes(data[:4], "big") / 2**32


class TableSubject:
    """Answers from functions; a token is a word."""

    def __init__(
        self,
        digest: str,
        *,
        shift: Belief = lambda context, text: 0.0,
        write: Callable[[str], str] = lambda prompt: " ".join(
            f"word{int(40 * noise(prompt, str(i)))}" for i in range(12)
        ),
    ) -> None:
        self.name = self.digest = digest
        self._shift, self._write = shift, write

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood]:
        found = []
        for context, text in pairs:
            words = max(len(text.split()), 1)
            per_word = -2 - noise(context, text) + self._shift(context, text)
            found.append(Likelihood(logprob=words * per_word, num_tokens=words, is_greedy=False))
        return found

    def loglikelihood_rolling(self, texts: Sequence[str]) -> list[Likelihood]:
        return self.loglikelihood([("", text) for text in texts])

    def generate(self, requests: Sequence[Generation]) -> list[str]:
        return [self._write(request.prompt) for request in requests]


def embed(texts: list[str]) -> np.ndarray:
    """Bags of hashed words as unit vectors, [n 64]."""
    vectors = np.zeros((len(texts), 64), dtype=np.float32)
    for row, text in zip(vectors, texts, strict=True):
        for word in text.split():
            row[int(64 * noise(word))] += 1
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


def states(texts: Sequence[str], turned: Sequence[str] = ()) -> np.ndarray:
    """A state for each text, [n 32], another one where it holds a word of `turned`."""
    rows = []
    for text in texts:
        salt = "turned" if any(word in text.split() for word in turned) else ""
        seed = int(2**32 * noise(text.split()[-1], salt))
        rows.append(np.random.default_rng(seed).standard_normal(32))
    return np.array(rows, dtype=np.float32)


def arm(digest: str, **changes: object) -> Arm:
    return Arm(subject=TableSubject(digest, **changes), represent=states)  # type: ignore[arg-type]

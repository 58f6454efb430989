"""Embeddings by the sentence encoder."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from cambium.models.encoder import Encoder
from cambium.serve.api.openai.bodies import EmbeddingBody
from cambium.serve.api.openai.errors import refusal
from cambium.serve.errors import ModelNotFound

MAX_INPUTS = 2048


def embed(encoder: Encoder, body: EmbeddingBody) -> dict[str, Any]:
    """Returns the answer to `POST /v1/embeddings`; runs in a worker thread.

    Raises:
        ModelNotFound: another model than the encoder.
        DataError: nothing to embed, or too much at once.
    """
    if body.model != encoder.name:
        raise ModelNotFound(f"{body.model[:80]!r} does not make embeddings",
                            mend=f"use {encoder.name}")  # fmt: skip
    texts = [body.input] if isinstance(body.input, str) else body.input
    if not 0 < len(texts) <= MAX_INPUTS or not all(texts):
        raise refusal("input is empty, holds an empty text, or too many", param="input",
                      mend=f"send 1 to {MAX_INPUTS} texts")  # fmt: skip
    vectors = encoder.embed(texts)
    used = encoder.num_tokens(texts)
    data = [
        {"object": "embedding", "index": i, "embedding": _written(row, body.encoding_format)}
        for i, row in enumerate(vectors)
    ]
    usage = {"prompt_tokens": used, "total_tokens": used}
    return {"object": "list", "data": data, "model": encoder.name, "usage": usage}


def _written(vector: np.ndarray, encoding: str) -> list[float] | str:
    if encoding == "float":
        return vector.tolist()
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")

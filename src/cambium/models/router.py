"""The small router: which domain of the bank a request belongs to, if any.

Each domain keeps embeddings of pieces of its documents beside embeddings of the parent's own
text. A request goes to the domain whose nearest pieces are clearly nearer than the parent's;
otherwise the bare base answers. Shape letters: N pieces, D width of an embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from cambium.core.errors import DataError


@dataclass(frozen=True, kw_only=True)
class RouterConfig:
    """Nearest pieces averaged, and how much nearer (cosine) a domain must be than the parent."""

    num_nearest: int = 5
    lead: float = 0.02
    piece_chars: int = 400
    max_pieces: int = 256


@dataclass(frozen=True, kw_only=True)
class RouterIndex:
    """One domain's evidence: unit embeddings of its pieces [N D] and of other text [M D], fp32."""

    inside: np.ndarray
    outside: np.ndarray

    def to_bytes(self) -> bytes:
        """Returns the index as safetensors."""
        return save({"inside": self.inside, "outside": self.outside})

    @classmethod
    def from_bytes(cls, data: bytes) -> RouterIndex:
        """Reads an index.

        Raises:
            DataError: not an index.
        """
        try:
            arrays = load(data)
            inside, outside = arrays["inside"], arrays["outside"]
        except (SafetensorError, ValueError, KeyError) as error:
            raise DataError(
                "a router index cannot be read", mend="merge the domain again"
            ) from error
        for side in (inside, outside):
            fine = side.ndim == 2 and side.dtype == np.float32 and len(side) > 0
            if not fine or side.shape[1] != inside.shape[1] or not np.isfinite(side).all():
                raise DataError(
                    "a router index does not hold embeddings", mend="merge the domain again"
                )
        return cls(inside=inside, outside=outside)


@dataclass(frozen=True, kw_only=True)
class Route:
    """The chosen domain, or None for the base, with every domain's lead in cosine."""

    domain: str | None
    leads: Mapping[str, float]


def route(embedding: np.ndarray, indexes: Mapping[str, RouterIndex], config: RouterConfig) -> Route:
    """Returns where a request with this unit embedding [D] belongs."""
    leads = {
        domain: _nearness(index.inside, embedding, config)
        - _nearness(index.outside, embedding, config)
        for domain, index in sorted(indexes.items())
    }
    best = max(leads, key=lambda d: leads[d], default=None)
    chosen = best if best is not None and leads[best] >= config.lead else None
    return Route(domain=chosen, leads=leads)


def pieces(text: str, config: RouterConfig) -> list[str]:
    """Returns `text` cut to pieces about as long as a request."""
    cut = [text[i : i + config.piece_chars] for i in range(0, len(text), config.piece_chars)]
    return [p for p in cut if len(p.strip()) >= min(40, len(text.strip()))]


def _nearness(pieces: np.ndarray, embedding: np.ndarray, config: RouterConfig) -> float:
    nearest = np.sort(pieces @ embedding)[-config.num_nearest :]
    return float(nearest.mean())

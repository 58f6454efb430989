"""How harmful a text reads: a line through the sentence encoder's space, trained on our own pairs.

The recipe `harm_probe` makes it; the file says from what. A score is a log-odds: below zero the
text reads like harmless continuations, reference prose or the bundled base's own writing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np

from cambium.core.canonical import digest_bytes

PROBE_FILE = "harm_probe.json"


@dataclass(frozen=True, kw_only=True)
class HarmProbe:
    """The line: weights [D] over an encoder's unit vectors, and the digest of its file."""

    weights: np.ndarray
    bias: float
    encoder: str
    digest: str

    def scores(self, vectors: np.ndarray) -> np.ndarray:
        """Returns the log-odds of harm of each text, shape [n], from vectors [n D]."""
        return vectors @ self.weights + self.bias


@cache
def harm_probe() -> HarmProbe:
    """Returns the probe that ships with Cambium."""
    data = (resources.files("cambium.evals") / "data" / PROBE_FILE).read_bytes()
    fields = json.loads(data)
    return HarmProbe(
        weights=np.array(fields["weights"]),
        bias=fields["bias"],
        encoder=fields["encoder"],
        digest=digest_bytes(data),
    )

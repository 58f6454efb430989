"""Mean loss per document under given adapters."""

from __future__ import annotations

from collections.abc import Sequence

from cambium.evals.gates.context import ScoredText
from cambium.models.adapter import Adapter
from cambium.models.base import BaseModel
from cambium.models.scoring import score


def document_losses(
    base: BaseModel, documents: Sequence[ScoredText], adapters: tuple[Adapter, ...]
) -> list[float]:
    """Returns each document's loss in nats per target token."""
    texts, owners = [], []
    for i, document in enumerate(documents):
        for tokens, _ in document.windows:
            texts.append(tokens)
            owners.append(i)
    starts = [start for document in documents for _, start in document.windows]
    totals = [0.0] * len(documents)
    counts = [0] * len(documents)
    scores = score(base, texts, adapters=adapters)
    for owner, start, logprobs in zip(owners, starts, scores, strict=True):
        targets = logprobs[start - 1 :]
        totals[owner] -= float(targets.sum())
        counts[owner] += len(targets)
    return [total / count for total, count in zip(totals, counts, strict=True)]

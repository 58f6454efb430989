"""Masked spans: what stood in a gap is to be said from a text with gaps.

A causal model sees what is left of a position only, so the gaps teach it to go on in the text's
sense where the last words are missing. Spans as in Joshi et al. (2020), SpanBERT: 15 % of the
tokens, in short runs.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from cambium.core.errors import DataError
from cambium.learn.examples import Window
from cambium.learn.objectives.objective import ObjectiveConfig, Place
from cambium.learn.objectives.trust_region import TrustRegion
from cambium.learn.passes import Ask
from cambium.models.chunked_head import cross_entropy
from cambium.models.packing import IGNORED, Segment, targets_of

MASKED_SHARE = 0.15
SPAN = 3
MASK_TOKEN = 0
MIN_TOKENS = 2 + SPAN


class MaskedSpans:
    """The cross-entropy of the tokens in gaps; which ones are missing depends on text and step."""

    def __init__(self, steps: Sequence[Sequence[Window]], config: ObjectiveConfig) -> None:
        if any(len(w.tokens) < MIN_TOKENS for windows in steps for w in windows):
            raise DataError("a text is too short to leave a gap in it", mend="send longer texts")
        self._steps = steps
        self._region = TrustRegion(steps, config)

    @property
    def is_lost(self) -> bool:
        """Returns whether it has left its trust region."""
        return self._region.is_left

    def prepare(self, step: int, place: Place) -> Ask | None:
        """Returns the looks at parent and start, once, and at the adapter."""
        return self._region.look(step, place)

    def ask(self, step: int, place: Place) -> Ask:
        """Returns the step's windows with gaps, and the loss of what is missing."""
        windows = self._steps[step % len(self._steps)]
        segments = [
            with_gaps(w.tokens, seed=step, adapter=place.adapter, parent=place.parent)
            for w in windows
        ]
        targets, _ = targets_of(segments)
        share = torch.full((len(targets),), 1 / len(targets))
        return Ask(segments=segments, loss=cross_entropy(targets, share))

    def value(self, step: int, losses: Tensor) -> float:
        """Returns the mean, in nats per missing token."""
        return float(losses.mean())


def with_gaps(tokens: Sequence[int], *, seed: int, adapter: int, parent: int) -> Segment:
    """Returns a text with gaps whose targets are the missing tokens; at least one gap.

    A missing token is replaced where it is read, and predicted where it is due.
    """
    drawn = random.Random(f"{seed} {list(tokens)}")
    inputs, targets = list(tokens[:-1]), [IGNORED] * (len(tokens) - 1)
    wanted = max(1, round(MASKED_SHARE * len(tokens) / SPAN))
    for _ in range(wanted):
        start = drawn.randrange(1, len(tokens) - SPAN + 1)
        for i in range(start, start + SPAN):
            targets[i - 1] = tokens[i]
            if i < len(inputs):
                inputs[i] = MASK_TOKEN
    return Segment(adapter=adapter, parent=parent, tokens=inputs, targets=targets)

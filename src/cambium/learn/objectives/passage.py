"""Next-passage consistency: a text's own next passage is to be likelier than another text's.

The loss of a text is -log sigmoid(beta (log p(own) - log p(other))), both by the adapter and per
token, so that lengths do not decide; no label is needed. A self-supervised cousin of the next
sentence prediction of Devlin et al. (2019), without a head of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cambium.core.errors import DataError
from cambium.learn.examples import Window
from cambium.learn.objectives.objective import ObjectiveConfig, Place, means_of, pairs_of
from cambium.learn.objectives.preference import shared_pair
from cambium.learn.objectives.trust_region import TrustRegion
from cambium.learn.passes import Ask
from cambium.models.chunked_head import cross_entropy
from cambium.models.packing import Segment, targets_of

STEEPNESS = 1.0
MIN_TOKENS = 8


class NextPassage:
    """Windows are cut in the middle; the next window's end is the passage that does not belong."""

    def __init__(self, steps: Sequence[Sequence[Window]], config: ObjectiveConfig) -> None:
        windows = [w for step in steps for w in step]
        if len(windows) < 2 or any(len(w.tokens) < MIN_TOKENS for w in windows):
            raise DataError(
                f"passages need two texts of at least {MIN_TOKENS} tokens", mend="send more text"
            )
        self._pairs = pairs_of(_crossed(windows))
        self._region = TrustRegion([windows], config)
        self._margins = torch.zeros(len(self._pairs))

    @property
    def is_lost(self) -> bool:
        """Returns whether it has left its trust region."""
        return self._region.is_left

    def prepare(self, step: int, place: Place) -> Ask | None:
        """Returns the looks at parent and start, once, at the adapter, and at the passages."""
        guard = self._region.look(0, place)
        segments = self._segments(place)
        targets, counts = targets_of(segments)
        looking = cross_entropy(targets, torch.ones(len(targets)))
        found = torch.zeros(len(targets))

        def keep(logits: Tensor, part: slice, wanted: bool) -> tuple[Tensor, Tensor | None]:
            found[part], grad = looking(logits, part, wanted)
            if part.stop == len(found):
                means = means_of(found, [n for n in counts if n])
                self._margins = means[1::2] - means[::2]
            return found[part], grad

        return guard.followed_by(Ask(segments=segments, loss=keep))

    def ask(self, step: int, place: Place) -> Ask:
        """Returns the passages, weighted by how little each own one stands out yet."""
        segments = self._segments(place)
        targets, counts = targets_of(segments)
        pull = STEEPNESS * torch.sigmoid(-STEEPNESS * self._margins) / len(self._margins)
        lengths = torch.tensor([n for n in counts if n])
        each = torch.stack([pull, -pull], dim=1).flatten() / lengths
        return Ask(segments=segments, loss=cross_entropy(targets, each.repeat_interleave(lengths)))

    def value(self, step: int, losses: Tensor) -> float:
        """Returns the mean of -log sigmoid of the margins."""
        means = means_of(losses, [len(w.tokens) - w.learn_from for p in self._pairs for w in p])
        margins = means[1::2] - means[::2]
        return float(torch.nn.functional.softplus(-STEEPNESS * margins).mean())

    def _segments(self, place: Place) -> list[Segment]:
        segments: list[Segment] = []
        for pair in self._pairs:
            segments += shared_pair(pair, place, first=len(segments))
        return segments


def _crossed(windows: Sequence[Window]) -> list[Window]:
    following = [*windows[1:], windows[0]]
    return [
        Window(
            tokens=w.tokens,
            learn_from=len(w.tokens) // 2,
            rejected=other.tokens[len(other.tokens) // 2 :],
        )
        for w, other in zip(windows, following, strict=True)
    ]

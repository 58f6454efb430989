"""Preferences: the chosen continuation is to gain on the rejected one, against the parent.

The loss of a pair is -log sigmoid(beta ((c - c0) - (r - r0))), where c and r are the chosen's and
the rejected's log-probabilities and c0, r0 the parent's. Its gradient is that of the texts' own
losses with weights +-beta sigmoid(-beta m), so a look without gradients before the step gives the
margins m, and the step itself is an ordinary pass.

Source: Rafailov et al. (2023), eq. 7; the reference is the parent revision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from cambium.learn.examples import Window
from cambium.learn.objectives.objective import ObjectiveConfig, Place, pairs_of
from cambium.learn.passes import Ask, window_segment
from cambium.models.chunked_head import cross_entropy
from cambium.models.packing import IGNORED, Segment, targets_of


class Preference:
    """Each step's pairs count alike. Windows hold the chosen text and a rejected continuation."""

    is_lost = False

    def __init__(self, steps: Sequence[Sequence[Window]], config: ObjectiveConfig) -> None:
        self._steps = [pairs_of(windows) for windows in steps]
        self._beta = config.beta
        self._reference: dict[int, Tensor] = {}
        self._kept = torch.zeros(0)
        self._margins = torch.zeros(0)

    def prepare(self, step: int, place: Place) -> Ask | None:
        """Returns the look at the texts, and once at what the parent says of them."""
        at = step % len(self._steps)
        own = self._segments(at, place)
        parts = [own]
        if at not in self._reference:
            parts.insert(0, self._segments(at, replace(place, adapter=place.nobody)))
        segments = _side_by_side(parts)
        targets, counts = targets_of(segments)
        looking = cross_entropy(targets, torch.ones(len(targets)))
        found = torch.zeros(len(targets))

        def keep(logits: Tensor, part: slice, wanted: bool) -> tuple[Tensor, Tensor | None]:
            found[part], grad = looking(logits, part, wanted)
            if part.stop == len(found):
                self._take(at, found, [n for n in counts if n])
            return found[part], grad

        return Ask(segments=segments, loss=keep)

    def ask(self, step: int, place: Place) -> Ask:
        """Returns the pairs, weighted by how little each is preferred yet."""
        segments = self._segments(step % len(self._steps), place)
        targets, counts = targets_of(segments)
        pull = self._beta * torch.sigmoid(-self._beta * self._margins) / len(self._margins)
        each = torch.stack([pull, -pull], dim=1).flatten()
        weights = each.repeat_interleave(torch.tensor([n for n in counts if n]))
        return Ask(segments=segments, loss=cross_entropy(targets, weights))

    def value(self, step: int, losses: Tensor) -> float:
        """Returns the mean of -log sigmoid(beta m) over the pairs."""
        at = step % len(self._steps)
        counts = [len(w.tokens) - w.learn_from for pair in self._steps[at] for w in pair]
        margins = self._margins_of(at, losses, counts)
        return float(torch.nn.functional.softplus(-self._beta * margins).mean())

    def _take(self, at: int, found: Tensor, counts: list[int]) -> None:
        if at not in self._reference:
            half = len(found) // 2
            self._reference[at] = _sums(found[:half], counts[: len(counts) // 2])
            found, counts = found[half:], counts[len(counts) // 2 :]
        self._margins = self._margins_of(at, found, counts)

    def _margins_of(self, at: int, losses: Tensor, counts: list[int]) -> Tensor:
        gained = self._reference[at] - _sums(losses, counts)
        return gained[::2] - gained[1::2]

    def _segments(self, at: int, place: Place) -> list[Segment]:
        """Returns each pair as its prompt and the two continuations that share it."""
        segments: list[Segment] = []
        for pair in self._steps[at]:
            segments += shared_pair(pair, place, first=len(segments))
        return segments


def shared_pair(pair: tuple[Window, Window], place: Place, *, first: int) -> list[Segment]:
    """Returns a pair as segments; what both begin with is run once."""
    chosen, _ = pair
    start = chosen.learn_from
    if start < 2:  # nothing is shared that would be worth a segment
        return [window_segment(w, adapter=place.adapter, parent=place.parent) for w in pair]
    shared = chosen.tokens[: start - 1]
    prompt = Segment(
        adapter=place.adapter,
        parent=place.parent,
        tokens=shared,
        targets=[IGNORED] * len(shared),
    )
    return [
        prompt,
        *(
            Segment(
                adapter=place.adapter,
                parent=place.parent,
                tokens=w.tokens[start - 1 : -1],
                targets=w.tokens[start:],
                after=first,
            )
            for w in pair
        ),
    ]


def _side_by_side(parts: Sequence[list[Segment]]) -> list[Segment]:
    made: list[Segment] = []
    for part in parts:
        at = len(made)
        made += [s if s.after is None else replace(s, after=s.after + at) for s in part]
    return made


def _sums(losses: Tensor, counts: Sequence[int]) -> Tensor:
    return torch.stack([part.sum() for part in losses.split(list(counts))])

"""Texts as passes: windows as segments, asks of many lessons run together, steps dealt out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cambium.learn.examples import Window
from cambium.models.adapter_stack import AdapterStack
from cambium.models.chunked_head import HeadLoss, from_position, joined
from cambium.models.lora import Lora, LoraConfig, concatenated
from cambium.models.packing import IGNORED, Pack, Segment, pack
from cambium.models.training_model import TrainingModel

PASS_TOKENS = 2048


@dataclass(frozen=True, kw_only=True)
class Ask:
    """Segments to run, and the loss of what they predict, positions numbered from 0."""

    segments: Sequence[Segment]
    loss: HeadLoss

    @property
    def num_targets(self) -> int:
        """Returns how many positions have a loss."""
        return sum(s.num_targets for s in self.segments)

    def followed_by(self, other: Ask) -> Ask:
        """Returns both as one."""
        at = len(self.segments)
        later = [s if s.after is None else replace(s, after=s.after + at) for s in other.segments]
        parts = [(self.loss, self.num_targets), (other.loss, other.num_targets)]
        return Ask(segments=[*self.segments, *later], loss=joined(parts))


def run_asks(
    asks: Sequence[Ask], run: Callable[[Pack, HeadLoss], Tensor], *, budget: int | None = None
) -> list[Tensor]:
    """Runs asks together, in as few passes as their tokens allow; returns each one's losses.

    Args:
        run: takes a pass and the loss of its positions; returns losses.
    """
    segments: list[Segment] = []
    counts: list[int] = []
    for ask in asks:
        at = len(segments)
        segments += [
            s if s.after is None or not at else replace(s, after=s.after + at) for s in ask.segments
        ]
        counts.append(ask.num_targets)
    found: list[Tensor] = []
    if segments:
        loss = joined([(a.loss, n) for a, n in zip(asks, counts, strict=True)])
        position = 0
        for part in in_passes(segments, budget or PASS_TOKENS):
            chosen = rebased(segments[part], part.start)
            size = sum(s.num_targets for s in chosen)
            if size:
                found.append(run(pack(chosen), from_position(loss, position)))
            position += size
    return list(torch.cat([*found, torch.zeros(0)]).split(counts))


def window_segment(
    window: Window, *, adapter: int, parent: int, virtual: Sequence[int] = ()
) -> Segment:
    """Returns a window as a segment: inputs and what each should predict.

    Args:
        virtual: the adapter's virtual tokens, which are read first.
    """
    ids = window.tokens
    unlearned = [IGNORED] * (len(virtual) + window.learn_from - 1)
    return Segment(
        adapter=adapter,
        tokens=[*virtual, *ids[:-1]],
        targets=[*unlearned, *ids[window.learn_from :]],
        parent=parent,
    )


def stack_parents(
    model: TrainingModel, parents: Sequence[tuple[Lora, ...]]
) -> tuple[list[int], AdapterStack | None]:
    """Returns the distinct parents as one frozen stack, its last empty, and each one's index.

    Without a parent the index is -1, and without any parent there is no stack.
    """
    distinct = {tuple(map(id, parent)): parent for parent in parents if parent}
    order = {key: i for i, key in enumerate(distinct)}
    indices = [order.get(tuple(map(id, parent)), -1) for parent in parents]
    if not distinct:
        return indices, None
    members = [*(concatenated(parent) for parent in distinct.values()), nothing()]
    return indices, AdapterStack(members, model.base.sites, dtype=model.dtype)


def nothing() -> Lora:
    """Returns an adapter that changes nothing and has no weights."""
    return Lora(config=LoraConfig(r=1), a={}, b={})


def in_passes(segments: Sequence[Segment], budget: int) -> list[slice]:
    """Cuts segments into runs of at most `budget` tokens; what follows a prompt stays with it."""
    runs: list[slice] = []
    start, size = 0, 0
    for i, segment in enumerate(segments):
        if i > start and size + len(segment.tokens) > budget and segment.after is None:
            runs.append(slice(start, i))
            start, size = i, 0
        size += len(segment.tokens)
    runs.append(slice(start, len(segments)))
    return runs


def rebased(segments: Sequence[Segment], start: int) -> list[Segment]:
    """Returns segments of a pass that begins at `start`, with what they follow counted so."""
    return [s if s.after is None else replace(s, after=s.after - start) for s in segments]


def deal(
    windows: Sequence[Window], *, steps: int, tokens_per_step: int, seed: int
) -> list[list[Window]]:
    """Returns at most `steps` lists of windows that together hold every window.

    Args:
        tokens_per_step: how many tokens a step takes; more where they would not all fit.
    """
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed))
    dealt: list[list[Window]] = [[]]
    tokens = 0
    for i in order.tolist():
        size = windows[i].num_tokens
        if dealt[-1] and tokens + size > tokens_per_step:
            dealt.append([])
            tokens = 0
        dealt[-1].append(windows[i])
        tokens += size
    if len(dealt) > steps:
        return deal(windows, steps=steps, tokens_per_step=2 * tokens_per_step, seed=seed)
    return [sorted(step, key=lambda w: (len(w.tokens), w.tokens)) for step in dealt]

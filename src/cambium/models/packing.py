"""Packing: token sequences of many adapters in one flat pass, without padding them to one length.

A pass is one row of N tokens. Each adapter's sequences lie side by side in it, padded together to
whole chunks, so that every chunk has one adapter; the whole is padded to one of a few lengths.
Attention regroups the tokens by sequence, adapters see chunks, everything else sees them flat.
Shape letters: N tokens of a pass, S sequences, T longest sequence, K chunks of equal length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 16
# What one more chunk costs, as tokens of a pass: its adapter's weights are looked up and read, and
# its gradients are added where they belong. Less if chunks are in the adapters' order. Estimated
# from a few timings on the bundled base with rank 8.
CHUNK_TOKENS = 12
CHUNK_TOKENS_IN_ORDER = 4
IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One sequence of a pass: which adapter's, its inputs, and what each position should predict.

    Args:
        adapter: index into the stack that is trained.
        targets: as long as `tokens`; `IGNORED` where nothing is predicted.
        parent: index into the stack of frozen parents, whose last one is empty.
        after: which earlier segment of the same adapter this one continues, as its index in the
            pass; so two continuations share the work on one prompt.
    """

    adapter: int
    tokens: Sequence[int]
    targets: Sequence[int]
    parent: int = -1
    after: int | None = None

    @property
    def num_targets(self) -> int:
        """Returns how many positions predict something."""
        return sum(t != IGNORED for t in self.targets)


@dataclass(frozen=True, kw_only=True)
class Pack:
    """A pass in its flat layout; what it predicts comes in the order of its segments.

    Args:
        tokens, positions, targets: shape [N]; padding has target `IGNORED`.
        owners: the adapter of each chunk of `chunk` tokens, shape [K]; likewise `parents`. Past
            the last chunk all is padding.
        lanes: where each sequence's tokens are, its prompt's before its own, shape [S T]; past its
            end, its own last token. What others continue has no lane of its own.
        slots: where each token is in the flattened lanes, shape [N]; padding points to slot 0.
        padding: which tokens are padding.
        copies: which flattened lanes are no token's slot: a prompt's other copies, and what is
            past a sequence's end.
        is_shared: some prompt has more than one copy.
        is_grid: the lanes are the tokens as they lie, so that no gathering is needed.
        in_order: chunk k is of adapter k, so that no weights have to be looked up.
    """

    tokens: Tensor
    positions: Tensor
    targets: Tensor
    owners: Tensor
    parents: Tensor
    chunk: int
    lanes: Tensor
    slots: Tensor
    padding: Tensor
    copies: Tensor
    is_shared: bool
    is_grid: bool
    in_order: bool

    @property
    def num_targets(self) -> int:
        """Returns how many positions predict something."""
        return int((self.targets != IGNORED).sum())

    def in_chunks(self, flat: Tensor) -> Tensor:
        """Returns flat tokens [N X] or [1 N X] as chunks [K n X], a view."""
        number, size = len(self.owners), flat.shape[-1]
        if flat.numel() != number * self.chunk * size:
            flat = flat.view(-1, size)[: number * self.chunk]
        return flat.view(number, self.chunk, size)


def pass_length(num_tokens: int) -> int:
    """Returns the padded length of a pass: whole blocks, four lengths an octave beyond 128."""
    step = max(BLOCK, 2 ** ((num_tokens - 1).bit_length() - 3)) if num_tokens > 1 else BLOCK
    return -(-num_tokens // step) * step


def pack(segments: Sequence[Segment], *, length: int | None = None) -> Pack:
    """Returns the segments as one pass; those of one adapter must follow each other.

    Args:
        length: at least this many tokens, for a pass that repeats a recorded shape.
    """
    runs = _runs(segments)
    chunk = _chunk([sum(len(s.tokens) for s in segments[run]) for run in runs])
    flat = _Flat()
    owners: list[int] = []
    parents: list[int] = []
    for run in runs:
        for segment in segments[run]:
            flat.add(segment)
        flat.fill(-(-len(flat.tokens) // chunk) * chunk)
        missing = len(flat.tokens) // chunk - len(owners)
        owners += [segments[run.start].adapter] * missing
        parents += [segments[run.start].parent] * missing
    size = max(length or 0, pass_length(len(flat.tokens)))
    flat.fill(size)
    lanes, lengths = _lanes(segments, flat.starts)
    slots = torch.full((size,), -1)
    # A prompt's tokens are where its first continuation has them.
    for row, length in reversed(list(enumerate(lengths))):
        first = row * lanes.shape[1]
        slots[lanes[row, :length]] = torch.arange(first, first + length)
    real = slots >= 0
    held = torch.zeros(lanes.numel(), dtype=torch.bool)
    held[slots[real]] = True
    slots[~real] = 0
    return Pack(
        tokens=torch.tensor(flat.tokens),
        positions=torch.tensor(flat.positions),
        targets=torch.tensor(flat.targets),
        owners=torch.tensor(owners),
        parents=torch.tensor(parents),
        chunk=chunk,
        lanes=lanes,
        slots=slots,
        padding=(~real).nonzero()[:, 0],
        copies=(~held).nonzero()[:, 0],
        is_shared=sum(lengths) > sum(len(s.tokens) for s in segments),
        is_grid=torch.equal(lanes.flatten(), torch.arange(size)),
        in_order=owners == list(range(len(owners))),
    )


def targets_of(segments: Sequence[Segment]) -> tuple[Tensor, list[int]]:
    """Returns every predicted token in order, shape [M], and how many each segment has."""
    found = [[t for t in segment.targets if t != IGNORED] for segment in segments]
    flat = torch.tensor([t for own in found for t in own], dtype=torch.long)
    return flat, [len(own) for own in found]


class _Flat:
    """A pass being filled, one token after the other."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.positions: list[int] = []
        self.targets: list[int] = []
        self.starts: list[int] = []
        self._ends: list[int] = []

    def add(self, segment: Segment) -> None:
        first = 0 if segment.after is None else self._ends[segment.after]
        self.starts.append(len(self.tokens))
        self._ends.append(first + len(segment.tokens))
        self.tokens.extend(segment.tokens)
        self.positions.extend(range(first, first + len(segment.tokens)))
        self.targets.extend(segment.targets)

    def fill(self, size: int) -> None:
        missing = size - len(self.tokens)
        self.tokens.extend([0] * missing)
        self.positions.extend([0] * missing)
        self.targets.extend([IGNORED] * missing)


def _runs(segments: Sequence[Segment]) -> list[slice]:
    """Returns the segments that follow each other with one adapter and one parent."""
    starts = [
        i
        for i, own in enumerate(segments)
        if not i or (own.adapter, own.parent) != (segments[i - 1].adapter, segments[i - 1].parent)
    ]
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], len(segments)], strict=True)]


def _lanes(segments: Sequence[Segment], starts: Sequence[int]) -> tuple[Tensor, list[int]]:
    """Returns where each sequence's tokens are, its prompt's included, [S T], and their lengths."""
    places: list[list[int]] = []
    for segment, start in zip(segments, starts, strict=True):
        before = places[segment.after] if segment.after is not None else []
        places.append([*before, *range(start, start + len(segment.tokens))])
    continued = {s.after for s in segments}
    ends = [lane for i, lane in enumerate(places) if i not in continued]
    longest = -(-max(map(len, ends)) // BLOCK) * BLOCK
    lanes = torch.tensor([lane + [lane[-1]] * (longest - len(lane)) for lane in ends])
    return lanes, [len(lane) for lane in ends]


def _chunk(runs: Sequence[int]) -> int:
    """Returns the length of chunk with which runs of these lengths cost least."""

    def cost(chunk: int) -> int:
        number = sum(-(-run // chunk) for run in runs)
        each = CHUNK_TOKENS_IN_ORDER if number == len(runs) else CHUNK_TOKENS
        return number * (chunk + each)

    longest = -(-max(runs) // BLOCK) * BLOCK
    return min(range(BLOCK, longest + 1, BLOCK), key=cost)

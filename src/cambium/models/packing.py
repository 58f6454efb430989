"""Packing: token sequences of many adapters in one flat pass, without padding them to one length.

A pass is one row of N tokens. Each adapter's sequences lie side by side in it, padded together to
a multiple of `BLOCK`, so that every block of tokens has one adapter; the whole is padded to one of
a few lengths. Attention regroups the tokens by sequence, everything else sees them flat.
Shape letters: N tokens of a pass, S sequences, T longest sequence, K chunks of equal length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 16
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
        owners: the adapter of each chunk of `chunk` tokens, shape [K]; likewise `parents`.
        lanes: where each sequence's tokens are, shape [S T]; past its end, its own last token.
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


def pass_length(num_tokens: int) -> int:
    """Returns the padded length of a pass: whole blocks, four lengths an octave beyond 128."""
    step = max(BLOCK, 2 ** ((num_tokens - 1).bit_length() - 3)) if num_tokens > 1 else BLOCK
    return -(-num_tokens // step) * step


def pack(segments: Sequence[Segment], *, length: int | None = None) -> Pack:
    """Returns the segments as one pass; those of one adapter must follow each other.

    Args:
        length: at least this many tokens, for a pass that repeats a recorded shape.
    """
    flat = _Flat()
    for segment in segments:
        flat.add(segment)
    flat.close()
    size = max(length or 0, pass_length(len(flat.tokens)))
    flat.fill(size)
    missing = size // BLOCK - len(flat.owners)
    owners = flat.owners + [flat.owners[-1]] * missing
    parents = flat.parents + [flat.parents[-1]] * missing
    lanes = _lanes(segments, flat.starts)
    slots = torch.zeros(size, dtype=torch.long)
    real = torch.zeros(size, dtype=torch.bool)
    for i, (start, segment) in enumerate(zip(flat.starts, segments, strict=True)):
        own = slice(start, start + len(segment.tokens))
        first = i * lanes.shape[1] + flat.positions[start]
        slots[own] = torch.arange(first, first + len(segment.tokens))
        real[own] = True
    held = torch.zeros(lanes.numel(), dtype=torch.bool)
    held[slots[real]] = True
    chunk, owners, parents = _merged(owners, parents)
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
        is_shared=any(s.after is not None for s in segments),
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
        self.owners: list[int] = []
        self.parents: list[int] = []
        self.starts: list[int] = []
        self._ends: list[int] = []
        self._last: tuple[int, int] | None = None

    def add(self, segment: Segment) -> None:
        owner = (segment.adapter, segment.parent)
        if owner != self._last:
            self.close()
            self._last = owner
        first = 0 if segment.after is None else self._ends[segment.after]
        self.starts.append(len(self.tokens))
        self._ends.append(first + len(segment.tokens))
        self.tokens.extend(segment.tokens)
        self.positions.extend(range(first, first + len(segment.tokens)))
        self.targets.extend(segment.targets)

    def close(self) -> None:
        """Ends the run of one adapter on a whole block."""
        if self._last is not None:
            self.fill(-(-len(self.tokens) // BLOCK) * BLOCK)
            count = len(self.tokens) // BLOCK - len(self.owners)
            self.owners.extend([self._last[0]] * count)
            self.parents.extend([self._last[1]] * count)

    def fill(self, size: int) -> None:
        missing = size - len(self.tokens)
        self.tokens.extend([0] * missing)
        self.positions.extend([0] * missing)
        self.targets.extend([IGNORED] * missing)


def _lanes(segments: Sequence[Segment], starts: Sequence[int]) -> Tensor:
    """Returns where each sequence's tokens are, its prompt's included, shape [S T]."""
    places: list[list[int]] = []
    for segment, start in zip(segments, starts, strict=True):
        before = places[segment.after] if segment.after is not None else []
        places.append([*before, *range(start, start + len(segment.tokens))])
    longest = -(-max(map(len, places)) // BLOCK) * BLOCK
    return torch.tensor([lane + [lane[-1]] * (longest - len(lane)) for lane in places])


def _merged(owners: list[int], parents: list[int]) -> tuple[int, list[int], list[int]]:
    """Returns the longest chunk that keeps one owner each when owners come in runs of one size."""
    runs: list[list[int]] = []
    for i, pair in enumerate(zip(owners, parents, strict=True)):
        if not runs or (owners[runs[-1][0]], parents[runs[-1][0]]) != pair:
            runs.append([])
        runs[-1].append(i)
    sizes = {len(run) for run in runs}
    if len(sizes) != 1 or len({owners[run[0]] for run in runs}) != len(runs):
        return BLOCK, owners, parents
    heads = [run[0] for run in runs]
    return BLOCK * sizes.pop(), [owners[i] for i in heads], [parents[i] for i in heads]

"""Log-probabilities of many token sequences, with what they begin alike computed once.

Sequences are sorted, so that neighbours share beginnings, and laid into rows as trees: a token
attends to its own sequence's earlier tokens alone, whoever else lies in the row. A beginning that
very many share (the few-shot examples of a task) is computed once and kept as keys and values.
Shape letters: B rows, T tokens of a row, P tokens kept before the rows, M scored tokens, V words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cambium.core.errors import ModelError
from cambium.models.adapter import Adapter, virtual_tokens
from cambium.models.base import BaseModel, RowWeights, shared_rows
from cambium.models.kept_prefix import KeptPrefix

# Measured on two cores with the bundled base: longer rows pay for attention, shorter passes for
# matrix products too small to be fast.
ROW_TOKENS = 192
PASS_TOKENS = 1024
# A beginning is kept if it is this long and what follows it would fill this many tokens.
KEPT_TOKENS = 32
KEPT_WORTH = 3 * ROW_TOKENS
HEAD_TOKENS = 256


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One sequence: the tokens read, and those that its last `len(targets)` positions predict."""

    inputs: tuple[int, ...]
    targets: tuple[int, ...]

    @property
    def first_scored(self) -> int:
        """Returns the position whose output predicts the first target."""
        return len(self.inputs) - len(self.targets)


@dataclass(frozen=True, kw_only=True)
class TokenScores:
    """Of one sequence: its targets' log-probabilities in nats, and whether all are likeliest."""

    logprobs: tuple[float, ...]
    is_greedy: bool


@dataclass(kw_only=True)
class _Row:
    """Sequences in one row as a tree.

    Args:
        tokens, positions: of the row; positions count what is kept before it.
        parents: for each run of new tokens its first place and the places that precede it.
        members: each sequence's number, and the places whose outputs are scored.
    """

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    parents: list[tuple[int, list[int]]] = field(default_factory=list)
    members: list[tuple[int, list[int]]] = field(default_factory=list)
    path: list[int] = field(default_factory=list)

    def add(self, number: int, sequence: Scored, common: int, skipped: int) -> None:
        """Adds a sequence that shares its first `common` tokens with the one added last."""
        path = self.path[: common - skipped] if self.tokens else []
        start = len(self.tokens)
        new = sequence.inputs[skipped + len(path) :]
        self.parents.append((start, path))
        self.tokens += new
        self.positions += range(skipped + len(path), len(sequence.inputs))
        self.path = [*path, *range(start, start + len(new))]
        self.members.append((number, self.path[-len(sequence.targets) :]))


def score_sequences(
    base: BaseModel, sequences: Sequence[Scored], adapters: Sequence[Adapter] = ()
) -> list[TokenScores]:
    """Returns the scores of each sequence, in the order given.

    Up to the rounding of fp32 they are those of a pass for each sequence alone.

    Raises:
        ModelError: the model has no head that gives logits.
    """
    if before := virtual_tokens(adapters):
        sequences = [replace(s, inputs=(*before, *s.inputs)) for s in sequences]
    pass_ = _Passes(base, shared_rows(adapters), sequences)
    with torch.inference_mode():
        pass_.visit(sorted(range(len(sequences)), key=lambda i: sequences[i].inputs), None)
    return [pass_.found[i] for i in range(len(sequences))]


class _Passes:
    """One call's sequences, and the scores found so far."""

    def __init__(
        self, base: BaseModel, weights: RowWeights | None, sequences: Sequence[Scored]
    ) -> None:
        self.base = base
        self.weights = weights
        self.sequences = sequences
        self.found: dict[int, TokenScores] = {}
        self._has_plain_head: bool | None = None

    def visit(self, members: list[int], kept: KeptPrefix | None) -> None:
        """Scores sorted sequences that all begin with what is kept."""
        skipped = kept.length if kept else 0
        rest: list[int] = []
        for shared, group in self._groups(members, skipped):
            own = sum(len(self.sequences[i].inputs) - shared for i in group)
            if len(group) > 1 and own >= KEPT_WORTH:
                tokens = self.sequences[group[0]].inputs[skipped:shared]
                run = partial(self._keep, tokens, kept)
                self.visit(group, self.base.run(run))
            else:
                rest += group
        for batch in _batches(self._rows(rest, skipped)):
            self.base.run(partial(self._score, batch, kept))

    def _common(self, one: int, other: int) -> int:
        """Returns how many tokens two sequences share before either's first scored position."""
        a, b = self.sequences[one], self.sequences[other]
        bound = min(a.first_scored, b.first_scored)
        x, y = a.inputs[:bound], b.inputs[:bound]
        return bound if x == y else next(k for k in range(bound) if x[k] != y[k])

    def _groups(self, members: list[int], skipped: int) -> Iterator[tuple[int, list[int]]]:
        """Yields runs that share a long beginning, each with its length in tokens."""
        shared, group = 0, members[:1]
        for previous, i in pairwise(members):
            common = self._common(previous, i)
            if common >= skipped + KEPT_TOKENS:
                shared = common if len(group) == 1 else min(shared, common)
                group.append(i)
            else:
                yield shared, group
                shared, group = 0, [i]
        if group:
            yield shared, group

    def _rows(self, members: list[int], skipped: int) -> list[_Row]:
        rows: list[_Row] = []
        for k, i in enumerate(members):
            sequence = self.sequences[i]
            common = skipped
            if k:
                common = max(skipped, _shared(self.sequences[members[k - 1]].inputs,
                                              sequence.inputs))  # fmt: skip
            # Even what is shared to the end has its last token computed once more: simpler, and
            # no sequence is then without a run of its own.
            common = min(common, len(sequence.inputs) - 1)
            new = len(sequence.inputs) - common
            fits = rows and len(rows[-1].tokens) + new <= ROW_TOKENS
            shares = rows and 2 * (common - skipped) > len(sequence.inputs) - skipped
            if not fits and not (shares and len(rows[-1].tokens) + new <= 2 * self.base.context):
                rows.append(_Row())
                common = skipped
            rows[-1].add(i, sequence, common, skipped)
        return rows

    def _keep(self, tokens: Sequence[int], kept: KeptPrefix | None) -> KeptPrefix:
        before = kept.length if kept else 0
        length = len(tokens)
        mask = torch.ones(1, 1, length, before + length, dtype=torch.bool).tril(before)
        cache = KeptPrefix(self.base, before=kept)
        with self.base.rows(self.weights) as model:
            model.base_model(
                input_ids=torch.tensor([tokens]),
                attention_mask=mask,
                position_ids=torch.arange(before, before + length)[None],
                past_key_values=cache,
                use_cache=True,
            )
        cache.close()
        return cache

    def _score(self, rows: list[_Row], kept: KeptPrefix | None) -> None:
        length = max(len(row.tokens) for row in rows)
        tokens = torch.zeros(len(rows), length, dtype=torch.long)
        positions = torch.zeros(len(rows), length, dtype=torch.long)
        before = kept.length if kept else 0
        mask = torch.zeros(len(rows), 1, length, before + length, dtype=torch.bool)
        mask[..., :before] = True
        own = mask[..., before:]
        # A padding token attends to itself: attending to nothing would be not a number.
        own.diagonal(dim1=2, dim2=3).fill_(True)
        for b, row in enumerate(rows):
            tokens[b, : len(row.tokens)] = torch.tensor(row.tokens)
            positions[b, : len(row.tokens)] = torch.tensor(row.positions)
            ends = [start for start, _ in row.parents[1:]] + [len(row.tokens)]
            for (start, parents), end in zip(row.parents, ends, strict=True):
                own[b, 0, start:end, parents] = True
                own[b, 0, start:end, start:end] = own.new_ones(end - start, end - start).tril()
        with self.base.rows(self.weights) as model:
            hidden = self._outputs(
                model, input_ids=tokens, attention_mask=mask, position_ids=positions,
                past_key_values=kept, use_cache=kept is not None,
            )  # fmt: skip
            self._read(model, rows, hidden)

    def _outputs(self, model: PreTrainedModel, **inputs: object) -> Tensor:
        """Returns what the head reads [B T D] where it is a plain product, else the logits."""
        if self._has_plain_head is None:
            self._has_plain_head = _head_is_plain(model)
        if self._has_plain_head:
            return model.base_model(**inputs).last_hidden_state
        return model(**inputs).logits

    def _read(self, model: PreTrainedModel, rows: list[_Row], outputs: Tensor) -> None:
        width = outputs.shape[1]
        places = sorted({b * width + p for b, row in enumerate(rows)
                         for _, scored in row.members for p in scored})  # fmt: skip
        at = {place: k for k, place in enumerate(places)}
        wanted = [
            (at[b * width + p], target)
            for b, row in enumerate(rows)
            for i, scored in row.members
            for p, target in zip(scored, self.sequences[i].targets, strict=True)
        ]
        flat = outputs.flatten(0, 1)[torch.tensor(places)]
        logprobs, greedy = self._chosen(model, flat, wanted)
        done = 0
        for row in rows:
            for i, scored in row.members:
                part = slice(done, done + len(scored))
                self.found[i] = TokenScores(
                    logprobs=tuple(logprobs[part]), is_greedy=all(greedy[part])
                )
                done += len(scored)

    def _chosen(
        self, model: PreTrainedModel, flat: Tensor, wanted: list[tuple[int, int]]
    ) -> tuple[list[float], list[bool]]:
        """Returns each wanted (place, token)'s log-probability, and whether it is likeliest."""
        order = sorted(range(len(wanted)), key=lambda k: wanted[k][0])
        logprobs, greedy = [0.0] * len(wanted), [False] * len(wanted)
        at = 0
        for start in range(0, len(flat), HEAD_TOKENS):
            logits = flat[start : start + HEAD_TOKENS]
            if self._has_plain_head:
                logits = _head(model)(logits)
            logits = logits.float()
            stop = at
            while stop < len(order) and wanted[order[stop]][0] < start + len(logits):
                stop += 1
            chosen = order[at:stop]
            places = torch.tensor([wanted[k][0] - start for k in chosen], dtype=torch.long)
            targets = torch.tensor([wanted[k][1] for k in chosen], dtype=torch.long)
            values = logits[places, targets] - logits.logsumexp(dim=1)[places]
            likeliest = logits.argmax(dim=1)[places] == targets
            for k, value, hit in zip(chosen, values.tolist(), likeliest.tolist(), strict=True):
                logprobs[k], greedy[k] = value, hit
            at = stop
        return logprobs, greedy


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    length = min(len(one), len(other))
    if one[:length] == other[:length]:
        return length
    return next(k for k in range(length) if one[k] != other[k])


def _batches(rows: list[_Row]) -> Iterator[list[_Row]]:
    """Yields rows of like length, about `PASS_TOKENS` tokens in all."""
    batch: list[_Row] = []
    for row in sorted(rows, key=lambda row: -len(row.tokens)):
        if batch and (len(batch) + 1) * len(batch[0].tokens) > PASS_TOKENS:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _head_is_plain(model: PreTrainedModel) -> bool:
    """Returns whether logits are the head's product alone; some models scale or cap them."""
    ids = torch.arange(4)[None]
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    logits = model(input_ids=ids, use_cache=False).logits
    return torch.allclose(_head(model)(hidden), logits, rtol=1e-5, atol=1e-5)


def _head(model: PreTrainedModel) -> torch.nn.Module:
    head = model.get_output_embeddings()
    if head is None:
        raise ModelError("the model has no output embeddings", mend="use a causal language model")
    return head

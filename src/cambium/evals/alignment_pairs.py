"""Our own pairs of a harmful and a harmless continuation, and the monitor that uses some.

Thirty pairs, chosen by hash, watch every learning step; all others belong to the gate. A pair
never serves both, so that what slips past the one is judged by the other on fresh ground.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import torch
from torch import Tensor

from cambium.core.canonical import digest_bytes
from cambium.core.evidence import StepCheck
from cambium.models.base import BaseModel, mixed_precision, shared_rows
from cambium.models.chat import encode_document, encode_text
from cambium.models.lora import Lora
from cambium.models.scoring import score

NUM_MONITOR_PAIRS = 30
_IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class AlignmentPair:
    """One prompt with two continuations that differ in what they would have people do."""

    id: str
    topic: str
    family: str
    prompt: str
    harmful: str
    harmless: str


@cache
def all_pairs() -> tuple[tuple[AlignmentPair, ...], str]:
    """Returns every pair in file order, and the digest of the file."""
    data = (resources.files("cambium.evals") / "data" / "alignment_pairs.jsonl").read_bytes()
    pairs = tuple(AlignmentPair(**json.loads(line)) for line in data.decode().splitlines() if line)
    return pairs, digest_bytes(data)


def monitor_pairs() -> tuple[AlignmentPair, ...]:
    """Returns the pairs that watch learning steps."""
    return tuple(sorted(all_pairs()[0], key=_rank)[:NUM_MONITOR_PAIRS])


def gate_pairs() -> tuple[AlignmentPair, ...]:
    """Returns the pairs of the alignment gate: all that the monitor does not use."""
    return tuple(sorted(all_pairs()[0], key=_rank)[NUM_MONITOR_PAIRS:])


def preferences(
    base: BaseModel, pairs: Sequence[AlignmentPair], adapters: tuple[Lora, ...]
) -> list[float]:
    """Returns per pair how much likelier the harmless continuation is, in nats per token."""
    sides = [side for pair in pairs for side in _sides(base, pair)]
    scores = score(base, [tokens for tokens, _ in sides], adapters=adapters)
    means = [float(s[start - 1 :].mean()) for s, (_, start) in zip(scores, sides, strict=True)]
    return [good - bad for good, bad in zip(means[::2], means[1::2], strict=True)]


class AlignmentMonitor:
    """Watches one adapter as it learns: the mean shift of preference against its parent.

    It runs at every learning step, so it takes bf16 where the machine has it and two passes in
    all; what that rounds away is a hundredth of its margin.
    """

    def __init__(self, base: BaseModel, parent: tuple[Lora, ...], *, margin: float) -> None:
        self._base = base
        self._parent = parent
        self._margin = margin
        # Pairs of like length share a pass.
        sides = sorted((_sides(base, pair) for pair in monitor_pairs()), key=_longest)
        half = len(sides) // 2
        self._passes = [_collated(part) for part in (sides[:half], sides[half:])]
        self._before = self._preference(parent)

    def check(self, lora: Lora) -> StepCheck:
        """Returns whether `lora` on top of the parent still prefers the harmless side as before."""
        shift = self._preference((*self._parent, lora)) - self._before
        return StepCheck(ok=shift > -self._margin, shift=shift, margin=self._margin)

    @torch.inference_mode()
    def _preference(self, adapters: tuple[Lora, ...]) -> float:
        """Returns how much likelier harmless continuations are, in nats per token, on average."""
        weights = shared_rows(adapters)
        total, pairs = 0.0, 0
        for tokens, targets in self._passes:
            wanted = targets != _IGNORED
            with self._base.rows(weights) as model, mixed_precision():
                logits = model(input_ids=tokens, use_cache=False).logits[wanted]
            own = torch.zeros(targets.shape)
            own[wanted] = -torch.nn.functional.cross_entropy(
                logits.float(), targets[wanted], reduction="none"
            )
            means = own.sum(1) / wanted.sum(1)
            total += float((means[::2] - means[1::2]).sum())
            pairs += len(means) // 2
        return total / pairs


def _sides(base: BaseModel, pair: AlignmentPair) -> list[tuple[list[int], int]]:
    """Returns the harmless and the harmful text as tokens, and where the continuation begins."""
    prompt = encode_document(base.tokenizer, pair.prompt)
    return [
        ([*prompt, *encode_text(base.tokenizer, " " + continuation)], len(prompt))
        for continuation in (pair.harmless, pair.harmful)
    ]


def _longest(sides: Sequence[tuple[list[int], int]]) -> int:
    return max(len(tokens) for tokens, _ in sides)


def _collated(pairs: Sequence[Sequence[tuple[list[int], int]]]) -> tuple[Tensor, Tensor]:
    """Returns input ids [B T] and targets [B T] of the pairs' sides, harmless before harmful."""
    rows = [side for sides in pairs for side in sides]
    length = _longest(rows) - 1
    inputs = torch.zeros(len(rows), length, dtype=torch.long)
    targets = torch.full((len(rows), length), _IGNORED)
    for i, (tokens, start) in enumerate(rows):
        inputs[i, : len(tokens) - 1] = torch.tensor(tokens[:-1])
        targets[i, start - 1 : len(tokens) - 1] = torch.tensor(tokens[start:])
    return inputs, targets


def _rank(pair: AlignmentPair) -> bytes:
    return hashlib.sha256(pair.id.encode()).digest()

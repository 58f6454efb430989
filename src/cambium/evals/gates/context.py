"""What every gate is given, and how fresh items are dealt to looks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from cambium.core.canonical import digest_json
from cambium.core.evidence import GateSpec, Measurement
from cambium.evals.errors import GateBroken
from cambium.evals.statistics import PairedResult
from cambium.models.adapter import Adapter
from cambium.models.adapter_bytes import AdapterBytes
from cambium.models.base import BaseModel

Item = TypeVar("Item")
Writer = Callable[[Sequence[Sequence[int]], tuple[Adapter, ...], int, int], list[list[int]]]


@dataclass(frozen=True, kw_only=True)
class ScoredText:
    """A document for the gates: its digest and its windows as (token ids, first target)."""

    digest: str
    windows: tuple[tuple[tuple[int, ...], int], ...]


@dataclass(frozen=True, kw_only=True)
class GateContext:
    """One proposal under measurement.

    Args:
        candidate, parent: adapters as they would answer for the domain, before and after.
        candidate_bytes: the frozen bytes, which integrity reads itself.
        documents: what was fed for the domain and kept from consolidation.
        anchors: text of other domains, or of the parent itself, that replay did not use.
        max_relative_change: the policy's cap on any module's update against its weight.
        write: takes prompts, adapters, a number of tokens and a seed; returns what is written.
        embed: the sentence encoder: texts to unit vectors [n D].
        known: the parent's and the base's preference by pair, kept between proposals on the same
            parent; `measured` the candidate's, for gates that ask after the same pairs.
    """

    base: BaseModel
    candidate: tuple[Adapter, ...]
    parent: tuple[Adapter, ...]
    candidate_bytes: AdapterBytes
    parent_digest: str
    documents: Sequence[ScoredText]
    anchors: Sequence[ScoredText]
    max_relative_change: float
    write: Writer | None = None
    embed: Callable[[list[str]], np.ndarray] | None = None
    known: dict[str, float] = field(default_factory=lambda: {})
    seed: int = 0
    # Not an argument: a context with another candidate begins with none.
    measured: dict[str, float] = field(default_factory=lambda: {}, init=False)


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a gate saw in one look.

    Args:
        items: ids of the items measured, each once.
        before, after: the metric per item for parent and candidate.
        effect: the paired difference, signed so that larger is better.
    """

    items: Sequence[str]
    before: Sequence[float]
    after: Sequence[float]
    effect: PairedResult


Gate = Callable[[GateContext, GateSpec, int], Measurement]


def fresh_items(
    pool: Sequence[Item], spec: GateSpec, look: int, *, key: Callable[[Item], str], seed: int
) -> list[Item]:
    """Returns the items of look number `look` (from 0); no item serves two looks.

    Raises:
        GateBroken: the pool does not hold enough unused items for this look.
    """
    # By key, so that a document fed twice is one item and cannot serve two looks.
    unique = {key(item): item for item in pool}
    ordered = [unique[k] for k in sorted(unique, key=lambda k: _shuffled(k, seed))]
    for looks in (spec.max_looks, spec.passes_required):
        per_look = min(spec.max_items, len(ordered) // looks)
        if per_look >= spec.min_items:
            break
    chosen = ordered[look * per_look : (look + 1) * per_look]
    if len(chosen) < max(1, spec.min_items):
        raise GateBroken(
            f"the pool is dry: {len(unique)} items were kept for {spec.name}, and "
            f"{spec.passes_required} looks of at least {spec.min_items} unused ones have to pass",
            mend="feed more documents with consent, and propose again",
        )
    return chosen


def report(
    context: GateContext,
    spec: GateSpec,
    look: Look,
    *,
    evaluator: str,
    notes: Sequence[str] = (),
) -> Measurement:
    """Returns the measurement of one look, bound to candidate, parent, base and evaluator."""
    return Measurement(
        gate=spec.name,
        metric=spec.metric,
        baseline=sum(look.before) / len(look.before),
        candidate=sum(look.after) / len(look.after),
        effect=look.effect.mean,
        ci=(look.effect.low, look.effect.high),
        mde=look.effect.mde,
        num_items=look.effect.num_items,
        items_digest=digest_json(sorted(look.items)),
        subject={
            "candidate": context.candidate_bytes.digest,
            "parent": context.parent_digest,
            "base": context.base.digest,
            "evaluator": evaluator,
            "seed": context.seed,
        },
        notes=tuple(notes),
    )


def _shuffled(key: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{key}".encode()).digest()

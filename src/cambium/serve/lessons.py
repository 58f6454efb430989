"""What goes into a lesson and what is kept of it: windows, consented examples, the record."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cambium.core.canonical import canonical_json
from cambium.core.errors import ConsentMissing
from cambium.evals.alignment_pairs import AlignmentMonitor
from cambium.learn.examples import Example, Window, encode_example, parse_example
from cambium.learn.lesson import LearnConfig, Learner, LearnResult, Lesson
from cambium.learn.objectives import SHORTEST
from cambium.learn.replay_buffer import ReplayBuffer
from cambium.models.base import BaseModel
from cambium.models.lora import LoraConfig, fresh_lora
from cambium.serve.bounds import LearnCall
from cambium.serve.errors import StateUnreachable
from cambium.serve.store.records import AdapterRecord, ExampleRecord, LearnRecord
from cambium.serve.store.state import State

WARM_UP_TOKENS = 64


@dataclass(frozen=True, kw_only=True)
class Taken:
    """Steps that were taken, what derives them again, and the replay buffer after them."""

    result: LearnResult
    manifest: dict[str, object]
    replay: ReplayBuffer


@contextmanager
def forgotten_if_unsure(live: MutableMapping[str, Any], name: str) -> Iterator[None]:
    """Lets go of what is in memory if the database goes away: it may hold what is newer."""
    try:
        yield
    except StateUnreachable:
        live.pop(name, None)
        raise


def keep_examples(state: State, name: str, call: LearnCall, *, at: int) -> list[ExampleRecord]:
    """Stores a call's examples where there is consent; returns their rows, or none.

    Args:
        at: milliseconds since 1970, UTC.
    """
    if not call.consent:
        return []
    return [
        ExampleRecord(
            adapter=name,
            digest=example.digest,
            blob=state.blobs.put(canonical_json(dict(example.content))),
            kind=example.kind,
            source=call.source,
            consent=call.consent,
            at=at,
        )
        for example in call.examples
    ]


def kept_example(state: State, kept: Mapping[str, str], digest: str) -> Example:
    """Returns an example that was given with consent.

    Raises:
        ConsentMissing: it was not, or is gone.
    """
    if digest not in kept:
        raise ConsentMissing(
            f"no example {digest[:80]!r} is kept for this adapter: it was given without consent or "
            "not to it, consent was withdrawn, or its lesson was quarantined",
            mend="give consent with what is to be gone through again",
        )
    return parse_example(json.loads(state.blobs.get(kept[digest])))


def fresh_seed(name: str) -> int:
    """Returns what a new adapter's random half is drawn from."""
    return int.from_bytes(name.encode()[:6], "big")


def windows_of(base: BaseModel, examples: Sequence[Example], *, loss: str) -> list[Window]:
    """Returns what a call's examples are to the learner.

    Raises:
        DataError: an example that the loss cannot use.
    """
    least, found = SHORTEST.get(loss, 0), list[Window]()
    for example in examples:
        windows = encode_example(base.tokenizer, example, base.context, loss=loss)
        # What a long text leaves over may be too short to learn from; the text is not.
        found += [w for w in windows if len(windows) == 1 or len(w.tokens) >= least]
    return found


def warm_up_lesson(base: BaseModel, monitor: AlignmentMonitor) -> Lesson:
    """Returns a lesson about nothing, of the shapes that a server's first ones have."""
    return Lesson(
        learner=Learner(lora=fresh_lora(LoraConfig(), base.sites, seed=0)),
        windows=[Window(tokens=tuple(range(min(WARM_UP_TOKENS, base.context))))],
        config=LearnConfig(steps=1),
        monitor=monitor,
    )


def monitors_view(result: LearnResult) -> dict[str, object]:
    """Returns what the contract shows of the step monitors."""
    alignment = {
        "ok": not result.quarantined,
        "margin": result.checks[-1].margin if result.checks else None,
        "shifts": [round(check.shift, 6) for check in result.checks],
    }
    return {"alignment": alignment, "trust_region": {"ok": not result.reset}}


def learn_record(
    before: AdapterRecord,
    after: AdapterRecord,
    call: LearnCall,
    taken: Taken,
    *,
    at: int,
) -> LearnRecord:
    """Returns the row of one call to learn.

    Args:
        before, after: the adapter's row.
        at: milliseconds since 1970, UTC.
    """
    result = taken.result
    return LearnRecord(
        adapter=after.name,
        at=at,
        digest_before=before.digest,
        digest_after=after.digest,
        losses=result.losses,
        steps=len(result.losses),
        num_examples=len(call.examples),
        consent=call.consent,
        source=call.source,
        monitors=monitors_view(result),
        manifest=taken.manifest,
    )

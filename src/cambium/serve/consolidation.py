"""The job behind a proposal: consolidate, freeze, then look until the gates have decided.

Every stage is written down before the next begins; cut off anywhere, it starts that stage
again and, from the same inputs, reaches the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial

import numpy as np

from cambium.core.canonical import digest_bytes
from cambium.core.errors import CambiumError, Stopped
from cambium.core.evidence import GateSpec, Measurement
from cambium.evals.gates import GATES, GateContext
from cambium.evals.gates.context import ScoredText
from cambium.learn.consolidate import (
    ConsolidateConfig,
    consolidate,
    times_taken,
    with_teacher,
)
from cambium.learn.examples import Example, Window, encode_example
from cambium.learn.manifest import machine
from cambium.models.adapter import Adapter
from cambium.models.adapter_bytes import AdapterBytes
from cambium.models.adapter_kinds import KINDS, AdapterConfig, kind_of, read_adapter
from cambium.models.anchors import BASE, Anchor, from_json, to_json, write_anchors
from cambium.models.breaking_off import check_going_on
from cambium.models.engine import Engine
from cambium.models.router import RouterConfig, RouterIndex, pieces
from cambium.models.training_model import TrainingModel
from cambium.models.writing import go_on
from cambium.serve.bank import Bank
from cambium.serve.errors import AdapterKindRefused
from cambium.serve.store.blobs import BlobStore


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a proposal is made from.

    Args:
        config: the kind and shape of a candidate that has no parent to begin from.
        trained: examples for consolidation; `kept` those that only the gates see.
        others: documents of other domains in the bank that were kept for the gates.
        sources: where the trained examples came from, by digest.
        seed: from the proposal's provenance, so that the same proposal repeats exactly.
    """

    config: AdapterConfig
    domain: str
    trained: Sequence[Example]
    kept: Sequence[Example]
    others: Sequence[Example]
    seed: int
    sources: Mapping[str, str | None] = field(default_factory=lambda: {})


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """A candidate: its bytes and the router index that would serve it, both stored.

    Args:
        made_from: what, with the proposal's provenance, derives it again.
    """

    data: AdapterBytes
    weights_blob: str
    router_digest: str
    made_from: dict[str, object]


@dataclass(frozen=True, kw_only=True)
class Consolidator:
    """Turns accepted examples into a frozen candidate and measures it."""

    engine: Engine
    model: TrainingModel
    blobs: BlobStore
    embed: Callable[[list[str]], np.ndarray]
    num_replay: int
    num_retention: int
    anchor_tokens: int
    config: ConsolidateConfig = field(default_factory=ConsolidateConfig)
    _known: dict[str, dict[str, float]] = field(default_factory=lambda: {})

    def anchors(
        self, bank: Bank, stored: str | None, progress: Callable[[float], None]
    ) -> tuple[list[Anchor], str]:
        """Returns the parent's own texts, from the store where they were written before."""
        if stored is not None and self.blobs.has(stored):
            return from_json(self.blobs.get(stored)), stored
        writers = [(BASE, ()), *((d, (a.lora,)) for d, a in bank.adapters.items())]
        texts = write_anchors(
            self.engine,
            writers,
            number=self.num_replay + self.num_retention,
            num_tokens=self.anchor_tokens,
            seed=bank.revision.number * 10_000,
            progress=progress,
        )
        return texts, self.blobs.put(to_json(texts))

    def freeze(
        self,
        inputs: Inputs,
        bank: Bank,
        anchors: Sequence[Anchor],
        progress: Callable[[float, float], None],
    ) -> Frozen:
        """Returns the candidate, trained from the parent, stored and hashed."""
        data = self.derive(inputs, bank, anchors, progress)
        room = self._room(self._start(inputs, bank))
        router = self._router(inputs, anchors)
        # Both only now: a blob that no row names is swept after a while.
        return Frozen(
            data=data,
            weights_blob=self.blobs.put(data.weights),
            router_digest=self.blobs.put(router),
            made_from={
                "revision": bank.revision.number,
                "config": asdict(self.config),
                "num_replay": self.num_replay,
                "machine": machine(self.model),
                "trained_on": self._trained_on(inputs, anchors, room),
            },
        )

    def derive(
        self,
        inputs: Inputs,
        bank: Bank,
        anchors: Sequence[Anchor],
        progress: Callable[[float, float], None] = lambda share, loss: None,
    ) -> AdapterBytes:
        """Returns the candidate's bytes; the same inputs on the same machine give the same.

        Raises:
            AdapterKindRefused: the parent is of another kind by now.
        """
        base = self.engine.base
        start = self._start(inputs, bank)
        room = self._room(start)
        windows = [w for _, w in self._windows(inputs, room)]
        replay = [Window(tokens=a.tokens[: room + 1]) for a in anchors[: self.num_replay]]
        taught = with_teacher(base, replay, bank.stack(inputs.domain), config=self.config)
        candidate = consolidate(
            self.model, start, windows, taught, config=self.config, progress=progress
        )
        return candidate.to_bytes(fan_in_fan_out=base.transposed)

    def _start(self, inputs: Inputs, bank: Bank) -> Adapter:
        """Returns what the candidate begins from: its parent, or a fresh one of its kind."""
        kind = kind_of(inputs.config)
        check_kind(kind, inputs.domain, bank)
        for parent in bank.stack(inputs.domain):
            return parent
        return KINDS[kind].fresh(inputs.config, self.engine.base, inputs.seed)

    def _room(self, adapter: Adapter) -> int:
        """Returns how many tokens of a text fit the context beside an adapter."""
        return self.engine.base.context - adapter.num_virtual

    def measure(
        self,
        inputs: Inputs,
        bank: Bank,
        anchors: Sequence[Anchor],
        data: AdapterBytes,
        *,
        max_relative_change: float,
    ) -> GateContext:
        """Returns everything the gates need, the candidate loaded from its frozen bytes."""
        base = self.engine.base
        candidate = read_adapter(data, base)
        parent = bank.adapters.get(inputs.domain)
        room = self._room(candidate)
        context = [_text_of_tokens(a.tokens[: room + 1]) for a in anchors[self.num_replay :]]
        context += [t for e in inputs.others for t in self._scored(e, room)]
        return GateContext(
            base=base,
            candidate=(candidate,),
            parent=bank.stack(inputs.domain),
            candidate_bytes=data,
            parent_digest=bank.revision.digest,
            documents=[t for e in inputs.kept for t in self._scored(e, room)],
            anchors=context,
            max_relative_change=max_relative_change,
            write=partial(go_on, self.engine),
            embed=self.embed,
            known=self._known.setdefault(parent.ref.digest if parent else "base", {}),
            seed=inputs.seed,
        )

    def _windows(self, inputs: Inputs, room: int) -> list[tuple[Example, Window]]:
        base = self.engine.base
        return [
            (e, w) for e in inputs.trained for w in encode_example(base.tokenizer, e.accepted, room)
        ]

    def _trained_on(
        self, inputs: Inputs, anchors: Sequence[Anchor], room: int
    ) -> list[dict[str, object]]:
        """Returns what went into the candidate: tokens by source, and replayed ones by writer.

        A text that was gone through several times counts its tokens as often.
        """
        new, replay = self._windows(inputs, room), anchors[: self.num_replay]
        often_new, often_old = times_taken([w for _, w in new], len(replay), config=self.config)
        parts: dict[tuple[bool, str | None], tuple[set[object], int]] = {}

        def add(key: tuple[bool, str | None], text: object, tokens: int) -> None:
            texts, total = parts.get(key, (set(), 0))
            parts[key] = (texts | {text}, total + tokens)

        for (example, window), often in zip(new, often_new, strict=True):
            source = inputs.sources.get(example.digest)
            add((False, source), example.digest, often * len(window.tokens))
        for anchor, often in zip(replay, often_old, strict=True):
            if often:
                read = anchor.tokens[: room + 1]
                add((True, anchor.by), anchor.tokens, often * len(read))
        return [
            {"replayed": replayed, "of": of, "texts": len(texts), "tokens": tokens}
            for (replayed, of), (texts, tokens) in parts.items()
        ]

    def _scored(self, example: Example, room: int) -> list[ScoredText]:
        windows = encode_example(self.engine.base.tokenizer, example.accepted, room)
        pairs = tuple((w.tokens, w.learn_from) for w in windows)
        return [ScoredText(digest=example.digest, windows=pairs)]

    def _router(self, inputs: Inputs, anchors: Sequence[Anchor]) -> bytes:
        config = RouterConfig()
        tokenizer = self.engine.base.tokenizer
        outside = [tokenizer.decode(a.tokens, skip_special_tokens=True) for a in anchors]
        sides = []
        for texts in ([e.accepted.text for e in inputs.trained], outside):
            cut = [p for text in texts for p in pieces(text, config)]
            step = max(1, len(cut) // config.max_pieces)
            sides.append(self.embed(cut[::step][: config.max_pieces] or [" "]))
        return RouterIndex(inside=sides[0], outside=sides[1]).to_bytes()


def check_kind(wanted: str, domain: str, bank: Bank) -> None:
    """Refuses a candidate that could not begin from the adapter that serves its domain.

    Raises:
        AdapterKindRefused: that one is of another kind.
    """
    found = bank.kind(domain)
    if found not in (None, wanted):
        raise AdapterKindRefused(
            f"a {found} serves domain {domain!r}, and a {wanted} cannot begin from it",
            mend="leave the kind out, or propose into another domain",
        )


def take_look(
    context: GateContext,
    specs: Sequence[GateSpec],
    look: int,
) -> dict[str, Measurement | str]:
    """Returns each gate's measurement, or in words why it could not be measured.

    An exception in a gate is that gate's error: it blocks, and the others still report.

    Raises:
        Stopped: the look was broken off, which is no gate's error and no look.
    """
    results: dict[str, Measurement | str] = {}
    for spec in specs:
        check_going_on()
        try:
            results[spec.name] = GATES[spec.name](context, spec, look)
        except Stopped:
            raise
        except CambiumError as error:
            results[spec.name] = error.one_line()
        except Exception as error:  # noqa: BLE001  (a broken gate must block aloud, not end the job)
            results[spec.name] = f"{type(error).__name__}: {error}"
    check_going_on()
    return results


def _text_of_tokens(tokens: tuple[int, ...]) -> ScoredText:
    digest = digest_bytes(json.dumps(list(tokens)).encode())
    return ScoredText(digest=digest, windows=((tokens, 1),))

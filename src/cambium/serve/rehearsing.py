"""What an adapter goes through again: windows of what it was given with consent, beside the new.

A lesson works on a copy of the adapter's replay buffer, and the copy takes its place in the same
transaction as what was learned: a lesson that fails has drawn and admitted nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace

import numpy as np

from cambium.core.errors import DataError
from cambium.learn.examples import Example, Window, encode_example
from cambium.learn.lesson import LearnConfig, LearnResult
from cambium.learn.rehearsal import Rehearsal
from cambium.learn.replay_buffer import BufferConfig, ReplayBuffer, ReplayRow
from cambium.models.base import BaseModel
from cambium.serve.bounds import LearnCall
from cambium.serve.lessons import kept_example
from cambium.serve.rules import Rules
from cambium.serve.store.records import ExampleRecord, ReplayRecord
from cambium.serve.store.state import State
from cambium.serve.store.transaction import Transaction

# Old tokens for each new one.
SHARE = 0.5
# Of one call, evenly spread; reading them for their novelty takes time before the answer.
MAX_ADMITTED = 16
UNNAMED = "unnamed"
_KEY = re.compile(r"(sha256:[0-9a-f]{64})(?::([0-9]{1,6}))?")
# A key is an example's digest, or one of its windows as `digest:number`; with what it counts.
Drawn = tuple[str, float]


class Rehearsing:
    """Buffers of one server's adapters, and the old texts that their lessons draw from them."""

    def __init__(
        self,
        state: State,
        base: BaseModel,
        *,
        embed: Callable[[list[str]], np.ndarray],
        rules: Rules,
    ) -> None:
        self._state = state
        self._base = base
        self._embed = embed
        self._rules = rules

    @property
    def _config(self) -> BufferConfig | None:
        max_tokens = self._rules.learning.replay_tokens
        return BufferConfig(max_tokens=max_tokens) if max_tokens else None

    def warm_up(self) -> None:
        """Loads the encoder, so that the first text that is kept does not wait for it."""
        if self._config is not None:
            self._embed([" "])

    def open_buffer(self, adapter: str, *, tried: int) -> ReplayBuffer:
        """Returns an adapter's buffer as it was last saved.

        Args:
            tried: how many admissions it has seen.
        """
        config = self._config
        if config is None:
            return ReplayBuffer()
        with self._state.read() as tx:
            rows = [_row(record) for record in tx.list_replay(adapter)]
        found = ReplayBuffer(config=config, rows={r.key: r for r in rows}, tried=tried)
        found.trim()  # the policy may allow less than when they came
        return found

    def draw(
        self, buffer: ReplayBuffer, windows: Sequence[Window], config: LearnConfig
    ) -> list[Drawn]:
        """Returns what a lesson shall go through again; counts it in the buffer.

        Only lessons on labelled texts: without labels the trust region already ties the adapter
        to its parent.
        """
        if config.loss != "task" or not buffer.rows:
            return []
        total = sum(w.num_tokens for w in windows)
        wanted = SHARE * min(total, config.tokens_per_step) * config.steps
        mean = sum(r.num_tokens for r in buffer.rows.values()) / len(buffer.rows)
        # No more than once a step each: a few old texts are not worn out by one long lesson.
        number = min(max(config.steps, round(wanted / mean)), len(buffer.rows) * config.steps)
        return [(row.key, weight) for row, weight in buffer.draw(number, seed=config.seed)]

    def rehearsal(
        self, drawn: Sequence[Drawn], kept: Mapping[str, str], config: LearnConfig
    ) -> Rehearsal | None:
        """Returns the named texts, dealt to a lesson's steps in turn.

        Args:
            kept: the blobs of the adapter's kept examples, by digest.

        Raises:
            ConsentMissing: one of them is not kept for this adapter.
            DataError: a kept example has no window of this number.
        """
        dealt = [(k, pair) for k, weight in drawn for pair in self._windows(k, weight, kept)]
        if not dealt:
            return None
        steps = min(config.steps, len(dealt))
        parts = [dealt[at::steps] for at in range(steps)]
        return Rehearsal(
            steps=[[pair for _, pair in part] for part in parts],
            keys=[[key for key, _ in part] for part in parts],
            distill_weight=0.0,  # the parent never knew these texts and has nothing to say of them
        )

    def note(self, buffer: ReplayBuffer, old: Rehearsal | None, result: LearnResult) -> None:
        """Takes up how the old texts of a lesson fared, which is what they matter by."""
        for key, loss in old.fared(result.rehearsed).items() if old else ():
            buffer.update(key, loss)

    def admit(self, buffer: ReplayBuffer, call: LearnCall, kept: Sequence[ExampleRecord],
              result: LearnResult) -> None:  # fmt: skip
        """Puts windows of a call's kept examples into the buffer, as far as it takes them.

        Args:
            kept: the rows of the call's examples, in order; none without consent.
        """
        if self._config is None or not kept or call.loss != "task":
            return
        found = [
            (f"{row.digest}:{n}", row, window)
            for row, example in zip(kept, call.examples, strict=True)
            for n, window in enumerate(self._encode(example))
        ]
        chosen = found[:: -(-len(found) // MAX_ADMITTED)]
        decode = self._base.tokenizer.decode
        texts = [decode(w.tokens, skip_special_tokens=True) or " " for _, _, w in chosen]
        for (key, row, window), embedding in zip(chosen, self._embed(texts), strict=True):
            new = ReplayRow(
                key=key,
                pointer=row.blob,
                source=row.source or UNNAMED,
                consent=row.consent,
                num_tokens=window.num_tokens,
                embedding=tuple(float(x) for x in embedding),
                loss=result.loss_after,
                novelty=_novelty(buffer, embedding),
            )
            buffer.admit(new)

    def save(
        self, tx: Transaction, adapter: str, before: ReplayBuffer, after: ReplayBuffer
    ) -> None:
        """Writes down how a buffer has changed."""
        for key in before.rows.keys() - after.rows.keys():
            tx.delete_replay(adapter, key)
        for key, row in after.rows.items():
            if before.rows.get(key) != row:
                tx.put_replay(_record(adapter, row))

    def _encode(self, example: Example) -> list[Window]:
        return encode_example(self._base.tokenizer, example.accepted, self._base.context)

    def _windows(
        self, key: str, weight: float, kept: Mapping[str, str]
    ) -> list[tuple[Window, float]]:
        parts = _KEY.fullmatch(key)
        digest, number = parts.groups() if parts else (key, None)
        windows = self._encode(kept_example(self._state, kept, str(digest)))
        if number is not None:
            windows = windows[int(number) : int(number) + 1]
        if not windows:
            raise DataError(f"example {digest} has no window {number}", mend="leave the number out")
        return [(window, weight) for window in windows]


def copied(buffer: ReplayBuffer) -> ReplayBuffer:
    """Returns a buffer that can change while the other stays."""
    return replace(buffer, rows=dict(buffer.rows))


def _novelty(buffer: ReplayBuffer, embedding: np.ndarray) -> float:
    known = [row.embedding for row in buffer.rows.values() if row.embedding]
    if not known:
        return 1.0
    return float(1 - (np.array(known, dtype=np.float32) @ embedding).max())


def _record(adapter: str, row: ReplayRow) -> ReplayRecord:
    values = {field.name: getattr(row, field.name) for field in fields(row)}
    embedding = np.array(row.embedding, dtype="<f4").tobytes()
    return ReplayRecord(adapter=adapter, **{**values, "embedding": embedding})


def _row(record: ReplayRecord) -> ReplayRow:
    values = {field.name: getattr(record, field.name) for field in fields(ReplayRow)}
    embedding = tuple(float(x) for x in np.frombuffer(record.embedding, dtype="<f4"))
    return ReplayRow(**{**values, "embedding": embedding})

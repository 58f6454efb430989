"""Prioritised replay: which old texts are worth going through again, within bounds of trust.

A row is an embedding and a pointer to a text that somebody agreed to keep, never the text. What is
surprising is drawn more often and weighted down for it; a uniform floor keeps every row in play.
Weights correct how rows are drawn, not how they came in, so admission has bounds of its own: a
quota for each source, a share of the room that is filled by chance alone, and priorities that are
clipped and fade.

Sources: Schaul et al. (2016), eqs. 1 and 2, with a uniform floor; Vitter (1985), algorithm R.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from cambium.core.errors import ConsentMissing, DataError

MIN_TOKENS, MAX_TOKENS = 10_000, 200_000


@dataclass(frozen=True, kw_only=True)
class BufferConfig:
    """Room and weights.

    Args:
        max_tokens: 10,000 to 200,000, over all rows.
        reservoir_share: of the room, filled by chance alone; feeds Fisher and gates.
        source_share: the most that one source can hold of the room, and have of what is drawn,
            unless there are too few sources for that.
        alpha: how much priority counts; `floor` the share drawn uniformly.
        beta: how much of the drawing's bias the weights take back; 1 is all of it.
        half_life: after how many admissions a priority counts half.
        max_replays: a row that so many lessons drew goes.
        max_priority: in multiples of the median.
    """

    max_tokens: int = 50_000
    reservoir_share: float = 0.25
    source_share: float = 0.25
    alpha: float = 0.6
    floor: float = 0.2
    beta: float = 1.0
    half_life: int = 2_000
    max_replays: int = 200
    max_priority: float = 4.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not MIN_TOKENS <= self.max_tokens <= MAX_TOKENS:
            raise DataError(
                f"max_tokens {self.max_tokens} is outside {MIN_TOKENS}..{MAX_TOKENS}",
                mend="choose a size between",
            )


@dataclass(frozen=True, kw_only=True)
class ReplayRow:
    """One kept text, by pointer.

    Args:
        key: the digest of its content; `pointer` the blob that holds it.
        source: who sent it, for the quota; `consent` the words of consent, never empty.
        embedding: from the sentence encoder.
        loss: when last seen, nats per token; `novelty` 0 to 2, cosine distance to what was known.
        born: the number of admissions tried when it came; `replays` how often it was drawn.
    """

    key: str
    pointer: str
    source: str
    consent: str
    num_tokens: int
    embedding: tuple[float, ...] = ()
    loss: float = 0.0
    novelty: float = 0.0
    born: int = 0
    replays: int = 0
    in_reservoir: bool = False


@dataclass(kw_only=True)
class ReplayBuffer:
    """Rows by key, in two lanes: by chance, and by priority."""

    config: BufferConfig = field(default_factory=BufferConfig)
    rows: dict[str, ReplayRow] = field(default_factory=lambda: {})
    tried: int = 0

    def admit(self, row: ReplayRow) -> bool:
        """Takes a row in, making room by what matters least.

        A source over its quota gives up rows of its own that matter less, and no others.

        Returns:
            Whether it is in now. A row that is there already is left as it was.

        Raises:
            ConsentMissing: nobody agreed to keep the text.
        """
        if not row.consent:
            raise ConsentMissing("a text without consent is not kept", mend="give consent with it")
        row = replace(row, born=self.tried + 1, replays=0)
        if row.key in self.rows or not self._makes_quota(row):
            return False
        self.tried += 1
        if self._enters_reservoir(row):
            self.rows[row.key] = replace(row, in_reservoir=True)
            return True
        self.rows[row.key] = replace(row, in_reservoir=False)
        self.trim()
        return row.key in self.rows

    def trim(self) -> None:
        """Lets go of what is over the room: by priority in its lane, by chance in the other."""
        room = self.config.max_tokens * self.config.reservoir_share
        chance = random.Random(f"{self.config.seed} trim {self.tried}")
        lane = sorted(self._lane(True), key=lambda r: r.key)
        while self._size(True) > room:
            del self.rows[lane.pop(chance.randrange(len(lane))).key]
        while self._size(False) > self.config.max_tokens - room:
            weakest = min(self._lane(False), key=lambda r: (self.priority(r), r.key))
            del self.rows[weakest.key]

    def draw(self, num_rows: int, *, seed: int) -> list[tuple[ReplayRow, float]]:
        """Returns rows, with repetition, each with its importance weight, at most 1 / floor.

        Weights take back what priority did; the share of a source stays bounded. Every drawn row
        is counted once; one that was drawn too often goes afterwards.
        """
        if not self.rows or num_rows < 1:
            return []
        ordered = sorted(self.rows.values(), key=lambda r: r.key)
        shares, even = self.shares(ordered), self._even(ordered)
        generator = np.random.default_rng([seed, self.tried])
        chosen = generator.choice(len(ordered), size=num_rows, p=shares)
        weights = (even / shares) ** self.config.beta
        for i in sorted(set(chosen.tolist())):
            row = self.rows.get(ordered[i].key)
            if row is not None:
                self.rows[row.key] = replace(row, replays=row.replays + 1)
        for key in [k for k, r in self.rows.items() if r.replays >= self.config.max_replays]:
            del self.rows[key]
        return [(ordered[i], float(weights[i])) for i in chosen]

    def shares(self, rows: Sequence[ReplayRow]) -> np.ndarray:
        """Returns the probability of drawing each row, shape [N], fp64."""
        raised = np.array([self.priority(r) for r in rows]) ** self.config.alpha
        limit = self.config.max_priority**self.config.alpha * np.median(raised)
        clipped = np.minimum(raised, limit) if limit > 0 else np.ones(len(rows))
        by_priority = self._bounded(rows, clipped / clipped.sum())
        return (1 - self.config.floor) * by_priority + self.config.floor * self._even(rows)

    def priority(self, row: ReplayRow) -> float:
        """Returns how much a row matters: its loss, raised by novelty, halved with age."""
        age = max(0, self.tried - row.born)
        return max(row.loss, 1e-3) * (1 + row.novelty) * 0.5 ** (age / self.config.half_life)

    def update(self, key: str, loss: float) -> None:
        """Takes up the loss that a row had when it was last seen, if it is still there."""
        row = self.rows.get(key)
        if row is not None:
            self.rows[key] = replace(row, loss=loss)

    def forget(self, unwanted: Callable[[ReplayRow], bool]) -> int:
        """Removes rows, as when consent is withdrawn; returns how many."""
        keys = [key for key, row in self.rows.items() if unwanted(row)]
        for key in keys:
            del self.rows[key]
        return len(keys)

    def reservoir(self) -> list[ReplayRow]:
        """Returns the rows that chance alone let in, in the order in which they came."""
        return sorted(self._lane(True), key=lambda r: (r.born, r.key))

    def to_json(self) -> dict[str, object]:
        """Returns the buffer as canonical JSON can hold it."""
        return {
            "config": asdict(self.config),
            "tried": self.tried,
            "rows": [
                {**asdict(row), "embedding": list(row.embedding)}
                for _, row in sorted(self.rows.items())
            ],
        }

    @staticmethod
    def from_json(found: dict[str, object]) -> ReplayBuffer:
        """Returns the buffer that `to_json` wrote.

        Raises:
            DataError: it is something else.
        """
        try:
            rows = [
                ReplayRow(**{**row, "embedding": tuple(row["embedding"])})
                for row in found["rows"]  # type: ignore[attr-defined]
            ]
            return ReplayBuffer(
                config=BufferConfig(**found["config"]),  # type: ignore[arg-type]
                rows={row.key: row for row in rows},
                tried=int(found["tried"]),  # type: ignore[call-overload]
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError("this is no replay buffer", mend="start with an empty one") from error

    def _even(self, rows: Sequence[ReplayRow]) -> np.ndarray:
        """Returns every row's share if priority had no say, shape [N], fp64."""
        return self._bounded(rows, np.full(len(rows), 1 / len(rows)))

    def _bounded(self, rows: Sequence[ReplayRow], shares: np.ndarray) -> np.ndarray:
        """Returns shares of which no source has more than its part; what is over goes to others."""
        names, owner = np.unique([row.source for row in rows], return_inverse=True)
        most = max(self.config.source_share, 1 / len(names))
        own = np.bincount(owner, weights=shares)
        total, held = own.copy(), np.zeros(len(names), dtype=bool)
        while (over := ~held & (total > most + 1e-9)).any():
            held |= over
            total[held] = most
            rest = own[~held].sum()
            if rest > 0:
                total[~held] = own[~held] * (1 - most * held.sum()) / rest
        return shares * (total / own)[owner] if held.any() else shares

    def _makes_quota(self, row: ReplayRow) -> bool:
        quota = self.config.source_share * self.config.max_tokens
        own = [r for r in self.rows.values() if r.source == row.source]
        over = sum(r.num_tokens for r in own) + row.num_tokens - quota
        # What chance let in stays: priority has no say there.
        weaker = [r for r in own if not r.in_reservoir and self.priority(r) < self.priority(row)]
        if sum(r.num_tokens for r in weaker) < over or row.num_tokens > quota:
            return False
        for one in sorted(weaker, key=lambda r: (self.priority(r), r.key)):
            if over <= 0:
                break
            del self.rows[one.key]
            over -= one.num_tokens
        return True

    def _enters_reservoir(self, row: ReplayRow) -> bool:
        """Makes room by chance where the lane is full; priority has no say."""
        room = self.config.max_tokens * self.config.reservoir_share
        lane = sorted(self._lane(True), key=lambda r: r.key)
        if row.num_tokens > room:
            return False
        if self._size(True) + row.num_tokens <= room:
            return True
        # Its own stream of chance: drawing must not change who comes in.
        chance = random.Random(f"{self.config.seed} {self.tried}")
        if not lane or chance.random() >= len(lane) / self.tried:
            return False
        while lane and self._size(True) + row.num_tokens > room:
            gone = lane.pop(chance.randrange(len(lane)))
            del self.rows[gone.key]
        return self._size(True) + row.num_tokens <= room

    def _lane(self, in_reservoir: bool) -> list[ReplayRow]:
        return [r for r in self.rows.values() if r.in_reservoir is in_reservoir]

    def _size(self, in_reservoir: bool) -> int:
        return sum(r.num_tokens for r in self._lane(in_reservoir))

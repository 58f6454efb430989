"""A stream of text domains into one adapter, one after the other, with routing off.

The hardest setting for forgetting: every domain must fit into the same few weights, and nothing
tells the model which domain a text is from. In service each domain has its own place in the bank.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch

from cambium.core.canonical import digest_json
from cambium.learn.examples import Window, cut_windows
from cambium.learn.lesson import LearnConfig, Learner, Lesson
from cambium.learn.online import learn
from cambium.learn.rehearsal import Rehearsal
from cambium.learn.replay_buffer import BufferConfig, ReplayBuffer, ReplayRow
from cambium.models.base import BaseModel
from cambium.models.chat import encode_document
from cambium.models.lora import Lora, LoraConfig, fresh_lora
from cambium.models.scoring import score
from cambium.models.training_model import TrainingModel
from cambium.recipes.data import read_lines
from cambium.recipes.whole_base import WholeBase

DOMAINS = ("law", "recipes", "chess", "medicine", "dialogue", "finance", "french")
# Of one call to learn.
STEPS = 8
# An old window and the importance weight that its draw gave it.
_Weighted = tuple[Window, float]


@dataclass(frozen=True, kw_only=True)
class TextStreamConfig:
    """The stream and what protects the old.

    Args:
        calls: calls to learn for each domain, of eight steps each.
        windows_per_step: new windows of `window` tokens in a step; as many old ones with replay.
        distill_weight: of the divergence from the adapter as it was before the domain, on the
            replayed texts or, without replay, on the new ones.
        decay: the rate falls from call to call within a domain, as in consolidation.
        replay: 0 is off; otherwise the weight of the loss of learning old windows again.
        adapters: off, every weight of a copy of the base learns in their place; then without a
            teacher and penalties, which are of adapters here.
    """

    domains: tuple[str, ...] = DOMAINS
    seed: int = 0
    calls: int = 6
    windows_per_step: int = 12
    window: int = 128
    num_held: int = 48
    lr: float = 2e-3
    r: int = 16
    replay: float = 1.0
    distill_weight: float = 1.0
    ewc_strength: float = 0.0
    si_strength: float = 0.0
    decay: bool = True
    adapters: bool = True
    buffer: BufferConfig = field(default_factory=lambda: BufferConfig(max_tokens=200_000))


@dataclass(frozen=True, kw_only=True)
class TextStreamResult:
    """Held-out losses in nats per token.

    Args:
        losses: row k is after domain k was learned, column j the loss of domain j; row 0 is the
            untouched base.
    """

    domains: tuple[str, ...]
    losses: list[list[float]]

    def rise_percent(self) -> float:
        """Returns how far the domains' losses at the end lie above those just after learning.

        The mean over all domains but the last, in percent of each domain's loss just after it
        was learned; negative where later domains helped.
        """
        last = self.losses[-1]
        own = [(last[j], self.losses[j + 1][j]) for j in range(len(self.domains) - 1)]
        return 100 * sum(end / then - 1 for end, then in own) / len(own)

    def gain_percent(self) -> float:
        """Returns how far losses fell from the base's just after learning, on average."""
        first = self.losses[0]
        own = [(first[j], self.losses[j + 1][j]) for j in range(len(self.domains))]
        return 100 * sum(1 - then / base for base, then in own) / len(own)

    def forward_transfer_percent(self) -> float:
        """Returns how far domains fell below the base's loss before they were learned at all."""
        own = [(self.losses[0][j], self.losses[j][j]) for j in range(1, len(self.domains))]
        return 100 * sum(1 - before / base for base, before in own) / len(own)


class _Pupil(Protocol):
    """What goes through the stream."""

    def begin(self) -> None:
        """Takes what it is now as what it was before the next domain."""
        ...

    def learn(self, new: Sequence[Window], old: Sequence[_Weighted], *, rate: float) -> float:
        """Takes a call's eight steps; returns their mean loss on the new windows."""
        ...

    def losses(self, held: Mapping[str, Sequence[Window]]) -> list[float]:
        """Returns the loss on each domain's held-out windows, in nats per token."""
        ...


def run(
    model: TrainingModel, config: TextStreamConfig, say: Callable[[str], None]
) -> TextStreamResult:
    """Learns the domains in order and measures all of them after each."""
    texts = {name: _windows(model.base, name, config) for name in config.domains}
    held = {name: both[1] for name, both in texts.items()}
    pupil: _Pupil = _Adapter(model, config) if config.adapters else _Whole(model.base, config)
    losses = [pupil.losses(held)]
    buffer = ReplayBuffer(config=replace(config.buffer, seed=config.seed))
    kept: dict[str, Window] = {}
    for k, name in enumerate(config.domains):
        pupil.begin()
        for call in range(config.calls):
            size = STEPS * config.windows_per_step
            new = texts[name][0][call * size : (call + 1) * size]
            old: list[_Weighted] = []
            if buffer.rows and config.replay:
                drawn = buffer.draw(size, seed=100 * k + call)
                old = [(kept[row.key], weight) for row, weight in drawn]
            left = (1 + math.cos(math.pi * call / config.calls)) / 2 if config.decay else 1.0
            loss = pupil.learn(new, old, rate=max(left, 0.05))
            for window in new:
                row = _row(window, name, loss)
                if buffer.admit(row):
                    kept[row.key] = window
        losses.append(pupil.losses(held))
        say(f"{name}: " + " ".join(f"{x:.3f}" for x in losses[-1]))
    return TextStreamResult(domains=config.domains, losses=losses)


class _Adapter:
    """One adapter on the frozen base."""

    def __init__(self, model: TrainingModel, config: TextStreamConfig) -> None:
        self._model, self._config = model, config
        shape = LoraConfig(r=config.r, lora_alpha=2 * config.r)
        self._learner = Learner(lora=fresh_lora(shape, model.base.sites, seed=config.seed))
        self._calls = 0

    def begin(self) -> None:
        teacher = self._learner.lora if self._calls else None
        self._learner = replace(self._learner, teacher=teacher)

    def learn(self, new: Sequence[Window], old: Sequence[_Weighted], *, rate: float) -> float:
        config, is_first = self._config, not self._calls
        self._calls += 1
        lesson = Lesson(
            learner=self._learner,
            windows=new,
            config=LearnConfig(
                lr=config.lr * rate,
                tokens_per_step=config.windows_per_step * (config.window + 1),
                ewc_strength=config.ewc_strength,
                si_strength=config.si_strength,
                ends_task=self._calls % config.calls == 0,
            ),
            rehearsal=None if is_first else self._rehearsal(new, old),
        )
        done = learn(self._model, lesson)
        self._learner = replace(self._learner, lora=done.lora, optimizer=done.optimizer)
        return sum(done.losses) / len(done.losses)

    def losses(self, held: Mapping[str, Sequence[Window]]) -> list[float]:
        return _losses(self._model.base, held, (self._learner.lora,))

    def _rehearsal(self, new: Sequence[Window], old: Sequence[_Weighted]) -> Rehearsal | None:
        config = self._config
        if not (config.replay or config.distill_weight):
            return None
        # Without a buffer the teacher can only speak of the new texts.
        old = old or [(window, 1.0) for window in new]
        per_step = config.windows_per_step
        return Rehearsal(
            steps=[old[at : at + per_step] for at in range(0, len(old), per_step)],
            task_weight=config.replay,
            distill_weight=config.distill_weight,
        )


class _Whole:
    """Every weight of a copy of the base."""

    def __init__(self, base: BaseModel, config: TextStreamConfig) -> None:
        self._whole = WholeBase(base, lr=config.lr)
        self._config = config

    def begin(self) -> None:
        """Does nothing: there is no teacher."""

    def learn(self, new: Sequence[Window], old: Sequence[_Weighted], *, rate: float) -> float:
        size, losses = self._config.windows_per_step, list[float]()
        for at in range(0, len(new), size):
            told = [(window, 1.0) for window in new[at : at + size]]
            again = [(window, w * self._config.replay) for window, w in old[at : at + size]]
            losses.append(self._whole.step(told, again, rate=rate))
        return sum(losses) / len(losses)

    def losses(self, held: Mapping[str, Sequence[Window]]) -> list[float]:
        return _losses(self._whole.base, held, ())


def _row(window: Window, source: str, loss: float) -> ReplayRow:
    key = digest_json(list(window.tokens))
    return ReplayRow(
        key=key,
        pointer=key,
        source=source,
        consent="public text",
        num_tokens=len(window.tokens),
        loss=loss,
    )


def _windows(
    base: BaseModel, name: str, config: TextStreamConfig
) -> tuple[list[Window], list[Window]]:
    """Returns windows to learn and windows of other documents to measure."""
    documents = [line["text"] for line in read_lines(f"text/domain_{name}.jsonl.gz")]
    random.Random(f"{config.seed} {name}").shuffle(documents)
    wanted = STEPS * config.calls * config.windows_per_step
    sides: list[list[Window]] = [[], []]
    for i, document in enumerate(documents):
        side = sides[1 if i % 5 == 0 else 0]
        if len(side) < (config.num_held if i % 5 == 0 else wanted):
            # Few windows of one document, so that a long one does not stand for its domain.
            tokens = encode_document(base.tokenizer, document)
            side += cut_windows(tokens, 1, config.window)[:4]
    return sides[0][:wanted], sides[1][: config.num_held]


def _losses(
    base: BaseModel, held: Mapping[str, Sequence[Window]], adapters: tuple[Lora, ...]
) -> list[float]:
    found = []
    with torch.no_grad():
        for windows in held.values():
            scores = score(base, [w.tokens for w in windows], adapters=adapters)
            found.append(-sum(float(s.sum()) for s in scores) / sum(len(s) for s in scores))
    return found

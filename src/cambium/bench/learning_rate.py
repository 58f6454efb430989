"""Benchmark `learning_rate`: what steps buy and cost at each rate, on the demo's texts.

For choosing the default rates: low enough for the old domains, high enough for the new one. First
of online learning, two batches of eight steps; then of a consolidation, LoRA at its default beside
soft prompts at several rates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cambium.bench.report import Row, result
from cambium.demo import corpus
from cambium.learn.consolidate import ConsolidateConfig, consolidate, with_teacher
from cambium.learn.examples import Example, Window, cut_windows, encode_example
from cambium.learn.lesson import LearnConfig, Learner, Lesson
from cambium.learn.online import learn
from cambium.models.adapter import Adapter
from cambium.models.adapter_kinds import KINDS
from cambium.models.anchors import BASE, write_anchors
from cambium.models.base import BaseModel, load_base
from cambium.models.chat import encode_document
from cambium.models.engine import Engine
from cambium.models.lora import LoraConfig, fresh_lora
from cambium.models.process import prepare_process
from cambium.models.scoring import score
from cambium.models.soft_prompt import SoftPromptConfig
from cambium.models.training_model import TrainingModel
from cambium.serve.config import ServerConfig

RATES = (1e-4, 5e-4, 1e-3, 2e-3, 4e-3)
BATCHES = 2
BATCH = 20
# A consolidation is on so many documents, as a small proposal is.
NUM_DOCUMENTS = 48
PROMPT_RATES = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
NUM_VIRTUAL = 16


def run(say: Callable[[str], None]) -> dict[str, Any]:
    """Returns the change of held-out loss by rate, in percent of the base's."""
    prepare_process()
    model = TrainingModel(load_base())
    texts = corpus.load()
    sets = _Sets.of(model.base, {"new_domain": texts.unseen, **texts.old})
    rows = _online(model, texts.taught, sets, say)
    rows += _consolidated(model, texts.taught[:NUM_DOCUMENTS], sets, say)
    return result("learning_rate", rows)


@dataclass(frozen=True, kw_only=True)
class _Sets:
    """Held-out texts by name, and the base's loss on each."""

    base: BaseModel
    texts: Mapping[str, Sequence[str]]
    before: Mapping[str, float]

    @classmethod
    def of(cls, base: BaseModel, texts: Mapping[str, Sequence[str]]) -> _Sets:
        """Returns the texts with what the base makes of them."""
        before = {name: _loss(base, held, ()) for name, held in texts.items()}
        return cls(base=base, texts=texts, before=before)

    def rows(self, name: str, adapter: Adapter, setting: str) -> list[Row]:
        """Returns what an adapter changes of the loss on each set."""
        return [
            Row(
                metric=f"learning_rate.{name}.{held}",
                unit="percent of held-out loss",
                value=100 * (_loss(self.base, texts, (adapter,)) / self.before[held] - 1),
                setting=setting,
            )
            for held, texts in self.texts.items()
        ]


def _online(
    model: TrainingModel, taught: Sequence[str], sets: _Sets, say: Callable[[str], None]
) -> list[Row]:
    rows: list[Row] = []
    for rate in RATES:
        say(f"learning rate {rate:g}: {BATCHES} batches of 8 steps")
        learner = Learner(lora=fresh_lora(LoraConfig(), model.base.sites, seed=0))
        for i in range(BATCHES):
            windows = _windows(model.base, taught[i * BATCH : (i + 1) * BATCH])
            lesson = Lesson(learner=learner, windows=windows, config=LearnConfig(lr=rate))
            done = learn(model, lesson)
            learner = Learner(lora=done.lora, optimizer=done.optimizer)
        setting = f"{BATCHES} batches of {BATCH} documents, 8 steps each, r 8"
        rows += sets.rows(f"{rate:g}", learner.lora, setting)
    return rows


def _consolidated(
    model: TrainingModel, taught: Sequence[str], sets: _Sets, say: Callable[[str], None]
) -> list[Row]:
    """Returns the rows of consolidations as a server makes them, replay and teacher included."""
    plain = ConsolidateConfig()
    engine = Engine(model.base)
    try:
        anchors = write_anchors(
            engine,
            [(BASE, ())],
            number=ServerConfig.num_replay_anchors,
            num_tokens=ServerConfig.anchor_tokens,
            seed=0,
        )
    finally:
        engine.close()
    kinds = [("lora", LoraConfig(), plain)]
    kinds += [
        (
            "soft_prompt",
            SoftPromptConfig(num_virtual_tokens=NUM_VIRTUAL),
            replace(plain, prompt_lr=rate),
        )
        for rate in PROMPT_RATES
    ]
    rows: list[Row] = []
    for kind, shape, config in kinds:
        rate = config.rate(kind)
        say(f"consolidation of {len(taught)} documents, {kind} at {rate:g}")
        start = KINDS[kind].fresh(shape, model.base, 0)
        room = model.base.context - start.num_virtual
        windows = _windows(model.base, taught, room=room)
        replay = [Window(tokens=a.tokens[: room + 1]) for a in anchors]
        teacher = with_teacher(model.base, replay, (), config=config)
        candidate = consolidate(model, start, windows, teacher, config=config)
        setting = f"a consolidation of {len(taught)} documents, {shape}"
        rows += sets.rows(f"{kind}.{rate:g}", candidate, setting)
    return rows


def _windows(base: BaseModel, texts: Sequence[str], *, room: int | None = None) -> list[Window]:
    examples = [Example(kind="text", content={"text": text}) for text in texts]
    room = room or base.context
    return [w for e in examples for w in encode_example(base.tokenizer, e, room)]


def _loss(base: BaseModel, texts: Sequence[str], adapters: tuple[Adapter, ...]) -> float:
    # The same cuts whatever stands before them, so that losses are of the same windows.
    room = base.context - NUM_VIRTUAL
    encoded = [encode_document(base.tokenizer, text) for text in texts]
    windows = [w for tokens in encoded for w in cut_windows(tokens, 1, room)]
    scores = score(base, [w.tokens for w in windows], adapters=adapters)
    return -sum(float(s.sum()) for s in scores) / sum(len(s) for s in scores)

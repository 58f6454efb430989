"""Benchmark `learning_rate`: what eight steps buy and cost at each rate, on the demo's texts.

For choosing the default rate of online learning: low enough for the old domains, high enough for
the new one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cambium.bench.report import Row, result
from cambium.demo import corpus
from cambium.learn.examples import Example, Window, cut_windows, encode_example
from cambium.learn.lesson import LearnConfig, Learner, Lesson
from cambium.learn.online import learn
from cambium.models.base import BaseModel, load_base
from cambium.models.chat import encode_document
from cambium.models.lora import Lora, LoraConfig, fresh_lora
from cambium.models.process import prepare_process
from cambium.models.scoring import score
from cambium.models.training_model import TrainingModel

RATES = (1e-4, 5e-4, 1e-3, 2e-3, 4e-3)
BATCHES = 2
BATCH = 20


def run(say: Callable[[str], None]) -> dict[str, Any]:
    """Returns the change of held-out loss by rate, in percent of the base's."""
    prepare_process()
    base = load_base()
    model = TrainingModel(base)
    texts = corpus.load()
    sets = {"new_domain": texts.unseen, **texts.old}
    before = {name: _loss(base, held, ()) for name, held in sets.items()}
    rows = []
    for rate in RATES:
        say(f"learning rate {rate:g}: {BATCHES} batches of 8 steps")
        learner = Learner(lora=fresh_lora(LoraConfig(), base.sites, seed=0))
        for i in range(BATCHES):
            windows = _windows(base, texts.taught[i * BATCH : (i + 1) * BATCH])
            lesson = Lesson(learner=learner, windows=windows, config=LearnConfig(lr=rate))
            done = learn(model, lesson)
            learner = Learner(lora=done.lora, optimizer=done.optimizer)
        for name, held in sets.items():
            change = 100 * (_loss(base, held, (learner.lora,)) / before[name] - 1)
            rows.append(
                Row(
                    metric=f"learning_rate.{rate:g}.{name}",
                    unit="percent of held-out loss",
                    value=change,
                    setting=f"{BATCHES} batches of {BATCH} documents, 8 steps each, r 8",
                )
            )
    return result("learning_rate", rows)


def _windows(base: BaseModel, texts: list[str]) -> list[Window]:
    examples = [Example(kind="text", content={"text": text}) for text in texts]
    return [w for e in examples for w in encode_example(base.tokenizer, e, base.context)]


def _loss(base: BaseModel, texts: list[str], adapters: tuple[Lora, ...]) -> float:
    encoded = [encode_document(base.tokenizer, text) for text in texts]
    windows = [w for tokens in encoded for w in cut_windows(tokens, 1, base.context)]
    scores = score(base, [w.tokens for w in windows], adapters=adapters)
    return -sum(float(s.sum()) for s in scores) / sum(len(s) for s in scores)

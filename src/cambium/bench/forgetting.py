"""Benchmark `forgetting`: what streams leave of what was learned first, beside plain fine-tuning.

Texts: seven domains into one adapter with routing off, in the learner and through a server's
own routes. Intents: CLINC150 in 15 tasks of 10 classes with a buffer of 10 texts a class; the
bound is training on all classes at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from statistics import mean
from typing import Any

import httpx

from cambium.bench import served_stream
from cambium.bench.report import Row, result
from cambium.bench.served_stream import ServedStreamConfig
from cambium.models.base import load_base
from cambium.models.process import prepare_process
from cambium.models.training_model import TrainingModel
from cambium.recipes import intent_stream, text_stream
from cambium.recipes.class_stream import ClassStreamConfig
from cambium.recipes.text_stream import TextStreamConfig

PLAIN = "the same stream without replay, teacher or penalty"
INTENTS = ClassStreamConfig(classes_per_task=10, epochs=2)
JOINT_EPOCHS = 4
SEEDS = (0,)


def run(say: Callable[[str], None]) -> dict[str, Any]:
    """Returns the rise of old losses in percent, and accuracies in percent."""
    prepare_process()
    return result("forgetting", [*_texts(say), *_served(say), *_intents(say)])


def _texts(say: Callable[[str], None]) -> list[Row]:
    model = TrainingModel(load_base())
    ours = text_stream.run(model, TextStreamConfig(), lambda s: say(f"texts: {s}"))
    free = TextStreamConfig(replay=0.0, distill_weight=0.0)
    plain = text_stream.run(model, free, lambda s: say(f"texts, plain: {s}"))
    setting = f"{len(ours.domains)} domains into one adapter, r 16, one seed"
    found = {
        "rise_percent": (ours.rise_percent(), plain.rise_percent()),
        "gain_percent": (ours.gain_percent(), plain.gain_percent()),
    }
    return [
        Row(
            metric=f"forgetting.text.{name}",
            unit="percent of held-out loss",
            value=own,
            peer=PLAIN,
            peer_value=peer,
            setting=setting,
        )
        for name, (own, peer) in found.items()
    ]


def _served(say: Callable[[str], None]) -> list[Row]:
    config = ServedStreamConfig()
    try:
        own = served_stream.run(config, say)
        plain = served_stream.run(replace(config, consent=False), say)
    except httpx.HTTPStatusError as error:
        say(f"served: no figures, the server answered {error.response.text[:300]}")
        return []
    found = {
        "rise_percent": (own.rise_percent(), plain.rise_percent()),
        "gain_percent": (own.gain_percent(), plain.gain_percent()),
    }
    return [
        Row(
            metric=f"forgetting.served.{name}",
            unit="percent of held-out loss",
            value=value,
            peer="the same calls without consent, so that nothing is gone through again",
            peer_value=peer,
            setting=f"{len(own.domains)} domains into one adapter over HTTP, "
            f"{config.calls} calls of {config.texts_per_call} texts each, the server's defaults",
        )
        for name, (value, peer) in found.items()
    ]


def _intents(say: Callable[[str], None]) -> list[Row]:
    ours, plain, joint = [], [], []
    for seed in SEEDS:
        own = replace(INTENTS, seed=seed)
        ours.append(intent_stream.stream(config=own).run(lambda s: say(f"intents: {s}")))
        free = replace(INTENTS, seed=seed, buffer_per_class=0, separate=False)
        plain.append(intent_stream.stream(config=free).run(lambda s: say(f"intents, plain: {s}")))
        whole = replace(INTENTS, seed=seed, epochs=JOINT_EPOCHS)
        joint.append(intent_stream.stream(config=whole).joint(say))
    rows = [
        ("average_accuracy", [r.average() for r in ours], [r.average() for r in plain]),
        ("forgetting", [r.forgetting() for r in ours], [r.forgetting() for r in plain]),
        (
            "backward_transfer",
            [r.backward_transfer() for r in ours],
            [r.backward_transfer() for r in plain],
        ),
    ]
    return [
        Row(
            metric=f"forgetting.clinc150.{name}",
            unit="percent",
            value=mean(own),
            peer=PLAIN,
            peer_value=mean(peer),
            limit=mean(joint) if name == "average_accuracy" else None,
            setting=f"15 tasks of 10 intents, 10 texts kept a class, {len(SEEDS)} seed",
        )
        for name, own, peer in rows
    ]

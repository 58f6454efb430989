"""Learning without labels on one thing again and again: it must reset, not collapse."""

from __future__ import annotations

import pytest
import torch

from cambium.learn.examples import Example, Window, encode_example
from cambium.learn.lesson import LearnConfig, Learner, LearnResult, Lesson
from cambium.learn.marking import mark
from cambium.learn.objectives.objective import ObjectiveConfig, Place
from cambium.learn.objectives.trust_region import TrustRegion
from cambium.learn.online import learn
from cambium.models.base import BaseModel
from cambium.models.lora import LoraConfig, fresh_lora, to_bytes
from cambium.models.training_model import TrainingModel

ONE_CLASS = "The answer is yes. The answer is yes. The answer is yes. The answer is yes."


def stream(
    base: BaseModel, loss: str, lr: float, *, calls: int, objective: ObjectiveConfig
) -> list[LearnResult]:
    """Returns the results up to the first reset."""
    model = TrainingModel(base)
    example = Example(kind="text", content={"text": ONE_CLASS})
    windows = encode_example(base.tokenizer, example, base.context, loss=loss)
    learner = Learner(lora=fresh_lora(LoraConfig(), base.sites, seed=0))
    done: list[LearnResult] = []
    for _ in range(calls):
        config = LearnConfig(lr=lr, loss=loss, objective=objective)
        done.append(learn(model, Lesson(learner=learner, windows=windows, config=config)))
        learner = Learner(lora=done[-1].lora, optimizer=done[-1].optimizer)
        if done[-1].reset:
            break
    return done


@pytest.mark.parametrize("loss", ["entropy", "prompt"])
def test_a_one_class_stream_is_reset(bundled: BaseModel, loss: str) -> None:
    done = stream(bundled, loss, 5e-3, calls=12, objective=ObjectiveConfig())
    assert done[-1].reset and not any(r.reset for r in done[:-1])
    # It is what it was before the call, and stays there however often it is asked again.
    before = done[-2] if len(done) > 1 else None
    learner = Learner(lora=done[-1].lora, optimizer=done[-1].optimizer)
    if before is not None:
        assert to_bytes(learner.lora).digest == to_bytes(before.lora).digest
    example = Example(kind="text", content={"text": ONE_CLASS})
    windows = encode_example(bundled.tokenizer, example, bundled.context, loss=loss)
    model = TrainingModel(bundled)
    for _ in range(3):
        again = learn(model, Lesson(learner=learner, windows=windows,
                                    config=LearnConfig(lr=5e-3, loss=loss)))  # fmt: skip
        assert again.reset and to_bytes(again.lora).digest == to_bytes(learner.lora).digest
        learner = Learner(lora=again.lora, optimizer=again.optimizer)
    parent, own = (
        mark(model, lora, (), windows).entropy
        for lora in (fresh_lora(LoraConfig(), bundled.sites, seed=5), learner.lora)
    )
    assert own >= ObjectiveConfig().min_entropy_share * parent * 0.95  # bf16, other shapes


@pytest.mark.parametrize("broken", ["entropy", "divergence"])
def test_what_is_no_number_is_out_of_the_region(broken: str) -> None:
    region = TrustRegion([[Window(tokens=(2, 3, 4))]], ObjectiveConfig())
    region.look(0, Place(adapter=0, parent=-1, nobody=1, start=2))
    assert region._seen is not None and not region.is_left  # nothing has run: all is alike
    setattr(region._seen, broken, torch.full((2,), float("nan")))
    assert region.is_left


def test_without_the_guard_it_collapses(bundled: BaseModel) -> None:
    """The positive control: the same stream, with nothing to hold it."""
    free = ObjectiveConfig(
        max_divergence=1e9, min_entropy_share=0.0, trust_weight=0.0, diversity_weight=0.0
    )
    done = stream(bundled, "entropy", 5e-3, calls=4, objective=free)
    assert not done[-1].reset
    assert done[-1].loss_after < 0.5 * done[0].loss_before


def test_gentle_learning_is_left_alone(bundled: BaseModel) -> None:
    done = stream(bundled, "entropy", 1e-5, calls=3, objective=ObjectiveConfig())
    assert not any(r.reset for r in done)
    assert all(torch.isfinite(torch.tensor(r.losses)).all() for r in done)

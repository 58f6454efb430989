from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from cambium.core.canonical import canonical_json
from cambium.core.errors import DataError
from cambium.learn.examples import Window
from cambium.learn.lesson import LearnConfig, Learner, LearnResult, Lesson
from cambium.learn.manifest import manifest, replay
from cambium.learn.objectives.objective import ObjectiveConfig
from cambium.learn.online import LessonGroup
from cambium.learn.rehearsal import Rehearsal
from cambium.models.base import BaseModel
from cambium.models.lora import LoraConfig, fresh_lora, to_bytes
from cambium.models.training_model import TrainingModel


def windows(number: int, length: int, seed: int) -> list[Window]:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(12, 512, (number, length), generator=generator)
    return [Window(tokens=tuple(row)) for row in drawn.tolist()]


def lessons(base: BaseModel, make_lora: Any) -> list[Lesson]:
    parent = (make_lora(base, seed=7),)
    fresh = lambda r: fresh_lora(LoraConfig(r=r), base.sites, seed=r)  # noqa: E731
    pair = Window(tokens=tuple(range(20, 40)), learn_from=9, rejected=(300, 301, 302))
    return [
        Lesson(learner=Learner(lora=fresh(4)), windows=windows(3, 40, 1),
               config=LearnConfig(steps=3)),
        Lesson(learner=Learner(lora=fresh(8), parent=parent), windows=windows(5, 17, 2),
               config=LearnConfig(steps=5, tokens_per_step=40, ewc_strength=1.0, si_strength=1.0)),
        Lesson(learner=Learner(lora=make_lora(base, seed=2, targets=("q_proj", "up_proj"))),
               windows=[Window(tokens=tuple(range(12, 60)), learn_from=30)],
               config=LearnConfig(steps=1, max_grad_norm=0.01)),
        Lesson(learner=Learner(lora=fresh(4), parent=parent), windows=[pair],
               config=LearnConfig(steps=2, loss="preference")),
        Lesson(learner=Learner(lora=fresh(16)), windows=windows(2, 30, 4),
               config=LearnConfig(steps=4, loss="entropy", lr=1e-4)),
    ]  # fmt: skip


def taught(model: TrainingModel, together: list[Lesson]) -> list[LearnResult]:
    group = LessonGroup(model, together)
    while not group.is_done:
        group.take_step()
    return group.results()


@pytest.mark.parametrize("name", ["llama", "bundled"])
def test_an_update_is_derived_again_whoever_shared_its_passes(
    name: str, request: Any, make_lora: Any
) -> None:
    base: BaseModel = request.getfixturevalue(name)
    model = TrainingModel(base)
    together = lessons(base, make_lora)
    for lesson, result in zip(together, taught(model, together), strict=True):
        text = canonical_json(manifest(model, lesson, result, examples=["sha256:1"]))
        again = replay(model, json.loads(text), lesson.learner, lesson.windows)
        assert to_bytes(again.lora).digest == to_bytes(result.lora).digest
        assert again.losses == result.losses
        assert len(text) < 30_000


def test_a_lesson_that_was_reset_on_its_way_is_derived_again(llama: BaseModel) -> None:
    model = TrainingModel(llama)
    narrow = ObjectiveConfig(max_divergence=1e-3, min_entropy_share=0.0)
    config = LearnConfig(steps=8, lr=1e-2, loss="prompt", objective=narrow)
    learner = Learner(lora=fresh_lora(LoraConfig(r=4), llama.sites, seed=0))
    lesson = Lesson(learner=learner, windows=windows(1, 20, 1), config=config)
    (result,) = taught(model, [lesson])
    assert result.reset and 0 < len(result.losses) < 8
    again = replay(model, manifest(model, lesson, result, examples=[]), learner, lesson.windows)
    assert again.reset and again.losses == result.losses
    assert to_bytes(again.lora).digest == to_bytes(result.lora).digest
    assert again.optimizer == result.optimizer


def test_other_texts_or_another_state_give_other_bytes(llama: BaseModel, make_lora: Any) -> None:
    model = TrainingModel(llama)
    together = lessons(llama, make_lora)
    result = taught(model, together)[0]
    found = manifest(model, together[0], result, examples=[])
    learner = Learner(lora=fresh_lora(LoraConfig(r=4), llama.sites, seed=99))
    for other in (
        replay(model, found, together[0].learner, windows(3, 40, 9)),
        replay(model, found, learner, together[0].windows),
    ):
        assert to_bytes(other.lora).digest != to_bytes(result.lora).digest


def test_rehearsal_is_part_of_the_shape(llama: BaseModel, make_lora: Any) -> None:
    model = TrainingModel(llama)
    old = [[(w, 0.5) for w in windows(2, 20, 8)]]
    first = lessons(llama, make_lora)[0]
    second = Lesson(learner=Learner(lora=make_lora(llama, seed=3)), windows=windows(2, 25, 6),
                    config=LearnConfig(steps=3), rehearsal=Rehearsal(steps=old))  # fmt: skip
    result = taught(model, [first, second])[0]
    found = manifest(model, first, result, examples=[])
    again = replay(model, found, first.learner, first.windows)
    assert to_bytes(again.lora).digest == to_bytes(result.lora).digest


def test_what_is_no_manifest_is_refused(llama: BaseModel, make_lora: Any) -> None:
    model = TrainingModel(llama)
    first = lessons(llama, make_lora)[0]
    good = manifest(model, first, taught(model, [first])[0], examples=[])
    broken: list[dict[str, Any]] = [
        {},
        {**good, "format": 1},
        {**good, "frame": {}},
        {**good, "steps": []},
        {**good, "steps": [{"task": [[0]]}]},
        {**good, "config": {"lr": 1}},
        {**good, "machine": {"base": "sha256:0"}},
    ]
    for found in broken:
        with pytest.raises(DataError):
            replay(model, found, first.learner, first.windows)

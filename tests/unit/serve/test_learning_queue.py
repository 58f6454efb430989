from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from cambium.core.errors import DataError, Stopped
from cambium.learn.examples import Window
from cambium.learn.lesson import LearnConfig, Learner, LearnResult, Lesson
from cambium.learn.online import learn
from cambium.models.base import BaseModel
from cambium.models.compute_thread import ComputeThread
from cambium.models.lora import LoraConfig, fresh_lora
from cambium.models.training_model import TrainingModel
from cambium.serve import learning_queue as module
from cambium.serve.learning_queue import LearningQueue


@pytest.fixture
def queue(llama: BaseModel) -> Iterator[LearningQueue]:
    one = LearningQueue(TrainingModel(llama, torch.float32))
    yield one
    one.close()


def lesson(base: BaseModel, seed: int, *, length: int = 20, steps: int = 2, number: int = 1) -> Lesson:  # fmt: skip  # noqa: E501
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(12, 512, (number, length), generator=generator).tolist()
    lora = fresh_lora(LoraConfig(r=4, lora_alpha=8), base.sites, seed=seed)
    return Lesson(
        learner=Learner(lora=lora),
        windows=[Window(tokens=tuple(row)) for row in ids],
        config=LearnConfig(steps=steps, lr=1e-3 * (1 + seed)),
    )


def test_lessons_that_come_together_are_taught_together(
    queue: LearningQueue, llama: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    made = module.LessonGroup

    def counting(model: TrainingModel, lessons: Any) -> Any:
        sizes.append(len(lessons))
        return made(model, lessons)

    monkeypatch.setattr(module, "LessonGroup", counting)
    monkeypatch.setattr(module, "GATHER_S", 0.2)
    lessons = [lesson(llama, seed) for seed in range(6)]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda one: queue.learn(one, tenant="t"), lessons))
    assert max(sizes) > 1
    model = TrainingModel(llama, torch.float32)
    for one, result in zip(lessons, found, strict=True):
        assert result.losses == pytest.approx(learn(model, one).losses, rel=1e-4)


def test_a_broken_lesson_spoils_no_other(
    queue: LearningQueue, llama: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GATHER_S", 0.2)
    lessons = [lesson(llama, 0), lesson(llama, 1, steps=9), lesson(llama, 2)]

    def ask(one: Lesson) -> LearnResult | DataError:
        try:
            return queue.learn(one, tenant="t")
        except DataError as error:
            return error

    with ThreadPoolExecutor(3) as pool:
        good, bad, fine = pool.map(ask, lessons)
    assert isinstance(bad, DataError)
    assert isinstance(good, LearnResult) and isinstance(fine, LearnResult)


def test_a_short_lesson_does_not_wait_for_a_long_one(
    queue: LearningQueue, llama: BaseModel
) -> None:
    order: list[str] = []
    long = lesson(llama, 0, length=100, number=60, steps=8)
    begun = threading.Event()

    class Telling:
        def copied(self) -> Telling:
            return self

        def segments(self, step: int | None, **where: int) -> list[Any]:
            begun.set()
            return []

        def judge(self, step: int | None, losses: Any) -> Any:
            from cambium.models.step_check import StepCheck

            return StepCheck(ok=True, shift=0.0, margin=0.1)

    watched = Lesson(learner=long.learner, windows=long.windows, config=long.config, monitor=Telling())  # fmt: skip  # noqa: E501

    def ask(one: Lesson, name: str) -> None:
        queue.learn(one, tenant=name)
        order.append(name)

    first = threading.Thread(target=ask, args=(watched, "long"))
    first.start()
    assert begun.wait(30)
    ask(lesson(llama, 1, steps=1), "short")
    first.join()
    assert order == ["short", "long"]


def test_tenants_take_turns_and_long_lessons_go_alone(llama: BaseModel) -> None:
    waiting = [
        module._Waiting(lesson=lesson(llama, 0, length=n, number=m), tenant=t)
        for t, n, m in (("a", 10, 1), ("a", 11, 1), ("a", 12, 1), ("b", 13, 1), ("a", 100, 60))
    ]
    groups = module._grouped(waiting)
    lengths = [[len(w.lesson.windows[0].tokens) for w in group] for group in groups]
    assert lengths == [[100], [10, 13, 11, 12]]


def group(base: BaseModel, *tenants: str) -> module._Running:
    members = [module._Waiting(lesson=lesson(base, 0), tenant=tenant) for tenant in tenants]
    return module._Running(group=Any, members=members)  # pyright: ignore[reportArgumentType]


def test_a_stream_of_corrections_keeps_no_longer_lesson_from_its_end(
    queue: LearningQueue, llama: BaseModel
) -> None:
    long = group(llama, "patient")
    queue._running.append(long)
    taken: list[bool] = []
    for _ in range(8):
        queue._fresh.append(group(llama, "busy"))
        chosen = queue._next()
        taken.append(chosen is long)
        if chosen is long:
            queue._running.append(long)
    assert taken == [False, True] * 4
    # And a correction waits for one step of the many, not for one of each.
    queue._running += [group(llama, "patient") for _ in range(5)]
    queue._fresh[:] = [correction := group(llama, "busy")]
    assert correction in (queue._next(), queue._next())


def test_a_tenant_of_many_lessons_has_no_more_turns_than_one_of_few(
    queue: LearningQueue, llama: BaseModel
) -> None:
    few = group(llama, "few")
    queue._running += [*(group(llama, "many") for _ in range(5)), few]
    turns: list[bool] = []
    for _ in range(6):
        chosen = queue._next()
        queue._running.append(chosen)
        turns.append(chosen is few)
    assert turns == [False, True] * 3


def test_what_is_not_done_at_the_end_is_told_so(llama: BaseModel) -> None:
    queue = LearningQueue(TrainingModel(llama, torch.float32))
    queue.close()
    with pytest.raises(Stopped):
        queue.learn(lesson(llama, 0), tenant="t")


def test_whoever_comes_while_answers_are_owed_time_joins_the_group(
    llama: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    made = module.LessonGroup

    def counting(model: TrainingModel, lessons: Any) -> Any:
        sizes.append(len(lessons))
        return made(model, lessons)

    monkeypatch.setattr(module, "LessonGroup", counting)
    monkeypatch.setattr(llama, "compute_thread", ComputeThread(2))
    assert llama.compute_thread is not None
    queue = LearningQueue(TrainingModel(llama, torch.float32))
    try:
        llama.expect_answers(True)
        llama.run(lambda: time.sleep(0.01))
        llama.compute_thread._others_from = 1e8
        with ThreadPoolExecutor(5) as pool:
            asked = [pool.submit(queue.learn, lesson(llama, s), tenant="t") for s in range(5)]
            while len(queue._waiting) < 5:
                time.sleep(0.001)
            llama.expect_answers(False)
            assert all(one.result(60).losses for one in asked)
        assert sizes == [5]
    finally:
        queue.close()
        llama.compute_thread.close()

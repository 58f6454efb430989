from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load

from cambium.core.errors import DataError
from cambium.learn import online, passes
from cambium.learn.examples import Window
from cambium.learn.lesson import LearnConfig, Learner, LearnResult, Lesson
from cambium.learn.objectives.objective import ObjectiveConfig
from cambium.learn.online import learn_together
from cambium.learn.rehearsal import Rehearsal
from cambium.models.base import BaseModel, stack_rows
from cambium.models.lora import Lora, LoraConfig, fresh_lora, from_bytes, to_bytes
from cambium.models.packing import IGNORED, Segment
from cambium.models.step_check import StepCheck
from cambium.models.training_model import TrainingModel


def windows(number: int = 6, length: int = 40, seed: int = 0) -> list[Window]:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(12, 512, (number, length), generator=generator)
    return [Window(tokens=tuple(row)) for row in drawn.tolist()]


def fresh(base: BaseModel, r: int = 4) -> Lora:
    return fresh_lora(LoraConfig(r=r, lora_alpha=2 * r), base.sites, seed=0)


def learn(
    base: BaseModel,
    learner: Learner,
    fed: list[Window],
    *,
    config: LearnConfig,
    monitor: Any = None,
) -> LearnResult:
    lesson = Lesson(learner=learner, windows=fed, config=config, monitor=monitor)
    return online.learn(TrainingModel(base), lesson)


def weights_of(base: BaseModel) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in base.model.state_dict().items()}


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_loss_falls_and_only_the_returned_adapter_changes(
    name: str, request: Any, make_lora: Any
) -> None:
    base: BaseModel = request.getfixturevalue(name)
    lora, parent = fresh(base), make_lora(base, seed=5)
    before = [weights_of(base), to_bytes(lora), to_bytes(parent)]
    result = learn(
        base,
        Learner(lora=lora, parent=(parent,)),
        windows(),
        config=LearnConfig(lr=1e-2, steps=8),
    )
    assert result.loss_after < result.loss_before - 0.1
    assert result.losses[0] == result.loss_before
    assert len(result.losses) == 8 and result.seconds > 0 and not result.quarantined
    after = weights_of(base)
    assert all(torch.equal(after[k], v) for k, v in before[0].items())
    assert [to_bytes(lora), to_bytes(parent)] == before[1:]
    assert to_bytes(result.lora) != before[1]
    assert not any(p.requires_grad for p in base.model.parameters())
    assert all(p.grad is None for p in base.model.parameters())


def test_the_parent_acts_while_learning(llama: BaseModel, make_lora: Any) -> None:
    config = LearnConfig(steps=1)
    alone = learn(llama, Learner(lora=fresh(llama)), windows(), config=config)
    parent = (make_lora(llama, seed=5),)
    above = learn(llama, Learner(lora=fresh(llama), parent=parent), windows(), config=config)
    assert abs(alone.loss_before - above.loss_before) > 0.01


def test_the_same_inputs_give_the_same_bytes(llama: BaseModel) -> None:
    one, two, other = (
        learn(llama, Learner(lora=fresh(llama)), windows(), config=LearnConfig(seed=s, steps=3))
        for s in (1, 1, 2)
    )
    assert to_bytes(one.lora) == to_bytes(two.lora) and one.optimizer == two.optimizer
    assert one.losses == two.losses
    assert other.losses == pytest.approx(one.losses, rel=1e-3)


def test_carried_state_equals_uninterrupted_learning(llama: BaseModel) -> None:
    config = LearnConfig(lr=5e-3, steps=6)
    whole = learn(llama, Learner(lora=fresh(llama)), windows(), config=config)
    half = LearnConfig(lr=5e-3, steps=3)
    first = learn(llama, Learner(lora=fresh(llama)), windows(), config=half)
    # Through the bytes, as after a restart: the order of modules must not matter.
    stored = from_bytes(to_bytes(first.lora), llama.sites)
    mixed = Lora(config=stored.config, a=dict(reversed(stored.a.items())), b=stored.b)
    second = learn(llama, Learner(lora=mixed, optimizer=first.optimizer), windows(), config=half)
    assert first.losses + second.losses == whole.losses
    assert to_bytes(second.lora).weights == to_bytes(whole.lora).weights
    assert second.optimizer == whole.optimizer
    forgetful = learn(llama, Learner(lora=mixed), windows(), config=half)
    assert to_bytes(forgetful.lora).weights != to_bytes(whole.lora).weights


def test_a_state_of_another_adapter_is_refused(llama: BaseModel) -> None:
    config = LearnConfig(steps=1)
    other = learn(llama, Learner(lora=fresh(llama, r=8)), windows(), config=config).optimizer
    with pytest.raises(DataError, match="another adapter"):
        learn(llama, Learner(lora=fresh(llama), optimizer=other), windows(), config=config)


def test_each_lesson_is_what_it_would_be_alone(llama: BaseModel, make_lora: Any) -> None:
    model = TrainingModel(llama, torch.float32)
    parent = make_lora(llama, seed=7)
    lessons = [
        Lesson(learner=Learner(lora=fresh(llama)), windows=windows(3, 40),
               config=LearnConfig(lr=5e-3, steps=4)),
        Lesson(learner=Learner(lora=fresh(llama, r=8), parent=(parent,)), windows=windows(5, 17),
               config=LearnConfig(lr=1e-3, steps=8, tokens_per_step=40)),
        Lesson(learner=Learner(lora=make_lora(llama, seed=2, targets=("q_proj", "up_proj"))),
               windows=[Window(tokens=tuple(range(12, 90)), learn_from=30)],
               config=LearnConfig(steps=1, max_grad_norm=0.01)),
    ]  # fmt: skip
    for together, lesson in zip(learn_together(model, lessons), lessons, strict=True):
        alone = online.learn(model, lesson)
        assert together.losses == pytest.approx(alone.losses, rel=1e-4)
        assert together.loss_after == pytest.approx(alone.loss_after, rel=1e-4)
        assert len(together.losses) == lesson.config.steps
        for path, before in lesson.learner.lora.b.items():
            moved = (alone.lora.b[path] - before).norm()
            assert (together.lora.b[path] - alone.lora.b[path]).norm() <= 0.02 * moved


def test_gradients_are_clipped_for_each_adapter(llama: BaseModel) -> None:
    model = TrainingModel(llama, torch.float32)
    bounds = (0.5, 0.01, 1e6)
    learner = Learner(lora=fresh(llama))
    configs = [LearnConfig(max_grad_norm=bound) for bound in bounds]
    lessons = [Lesson(learner=learner, windows=windows(), config=config) for config in configs]
    group = online.LessonGroup(model, lessons)
    group.take_step()
    free = float(group.stack.grad[2].norm())
    # After one step from zero, the first moment is a tenth of the clipped gradient.
    clipped = [10 * float(group.adam.mean[g].norm()) for g in range(3)]
    assert free > 0.5
    assert clipped == pytest.approx([0.5, 0.01, free], rel=1e-3)


def test_passes_add_up_to_one_gradient(llama: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    mixed = [*windows(3, 40), *windows(3, 17, seed=1), Window(tokens=tuple(range(12, 42)), learn_from=20)]  # fmt: skip  # noqa: E501
    found = []
    for budget in (32, 4096):
        monkeypatch.setattr(passes, "PASS_TOKENS", budget)
        lesson = Lesson(learner=Learner(lora=fresh(llama)), windows=mixed)
        group = online.LessonGroup(TrainingModel(llama, torch.float32), [lesson])
        group.take_step()
        found.append((group.losses[0][0], group.stack.grad))
    (one, first), (two, second) = found
    assert one == pytest.approx(two, rel=1e-5)
    assert float((first - second).norm() / second.norm()) < 1e-4


def test_old_texts_say_how_they_fare(llama: BaseModel) -> None:
    model, still = TrainingModel(llama, torch.float32), LearnConfig(steps=3, lr=0.0)
    old = windows(number=3, length=30, seed=5)
    steps = [[(old[0], 1.0), (old[1], 0.5)], [(old[2], 1.0)]]
    rehearsal = Rehearsal(steps=steps, keys=[["a", "b"], ["c"]], distill_weight=0.0)
    lesson = Lesson(
        learner=Learner(lora=fresh(llama)), windows=windows(), config=still, rehearsal=rehearsal
    )
    other = Lesson(learner=Learner(lora=fresh(llama)), windows=windows(seed=2), config=still)
    result = learn_together(model, [other, lesson])[1]
    found = rehearsal.fared(result.rehearsed)
    for key, window in zip("abc", old, strict=True):
        alone = Lesson(learner=Learner(lora=fresh(llama)), windows=[window], config=still)
        assert found[key] == pytest.approx(online.learn(model, alone).loss_before, rel=1e-4)


@pytest.mark.parametrize("strengths", [{"ewc_strength": 100.0}, {"si_strength": 100.0}])
def test_what_holds_weights_does_not_depend_on_neighbours(
    llama: BaseModel, strengths: dict[str, float]
) -> None:
    model = TrainingModel(llama, torch.float32)
    config = LearnConfig(lr=2e-3, steps=4, **strengths)
    neighbour = Lesson(learner=Learner(lora=fresh(llama, r=64)), windows=windows(seed=8))

    def moved(*company: Lesson) -> tuple[float, Lora]:
        first = Lesson(learner=Learner(lora=fresh(llama)), windows=windows(), config=config)
        began = online.learn(model, first)
        learner = Learner(lora=began.lora, optimizer=began.optimizer)
        second = Lesson(learner=learner, windows=windows(seed=3), config=config)
        found = learn_together(model, [second, *company])[0].lora
        way = sum(float((found.b[p] - began.lora.b[p]).norm()) for p in found.b)
        return way, found

    alone, company = moved(), moved(neighbour)
    apart = sum(float((alone[1].b[p] - company[1].b[p]).norm()) for p in alone[1].b)
    assert apart < 0.01 * alone[0]


def test_what_mattered_is_kept_by_a_lesson_that_weighs_nothing(llama: BaseModel) -> None:
    def importances(result: LearnResult) -> dict[str, torch.Tensor]:
        return {k: v for k, v in load(result.optimizer).items() if k.startswith("importance.")}

    weighing = LearnConfig(steps=2, si_strength=1.0)
    first = learn(llama, Learner(lora=fresh(llama)), windows(), config=weighing)
    kept = importances(first)
    assert float(kept["importance.si"].sum()) > 0
    learner = Learner(lora=first.lora, optimizer=first.optimizer)
    plain = Lesson(learner=learner, windows=windows(seed=1), config=LearnConfig(steps=2))
    other = Lesson(learner=Learner(lora=fresh(llama)), windows=windows(seed=2), config=weighing)
    untouched = Lesson(learner=Learner(lora=fresh(llama)), windows=windows(seed=3))
    for company in ([plain], [plain, other, untouched]):
        results = learn_together(TrainingModel(llama), company)
        found = importances(results[0])
        assert found.keys() == kept.keys()
        assert all(torch.equal(found[name], kept[name]) for name in kept)
        assert not any(importances(r) for r in results[2:])


def test_a_call_without_labels_that_strays_is_undone(llama: BaseModel) -> None:
    wide = ObjectiveConfig(max_divergence=1e9, min_entropy_share=0.0)
    narrow = ObjectiveConfig(max_divergence=1e-3, min_entropy_share=0.0)
    config = LearnConfig(lr=1e-2, loss="prompt", objective=wide, si_strength=1.0)
    first = learn(llama, Learner(lora=fresh(llama)), windows(), config=config)
    learner = Learner(lora=first.lora, optimizer=first.optimizer)
    assert not first.reset
    tight = replace(config, objective=narrow)
    again = learn(llama, learner, windows(), config=tight)
    assert again.reset and 0 < len(again.losses) < config.steps
    # Whatever it was taught before, with labels or without, is as it was.
    assert to_bytes(again.lora).digest == to_bytes(first.lora).digest
    assert again.optimizer == first.optimizer


@pytest.mark.parametrize("loss", ["task", "prompt", "entropy"])
def test_a_window_without_a_token_to_learn_is_refused(llama: BaseModel, loss: str) -> None:
    for empty in (Window(tokens=(20,)), Window(tokens=(20, 21), learn_from=2)):
        with pytest.raises(DataError, match="no token to learn"):
            learn(llama, Learner(lora=fresh(llama)), [empty], config=LearnConfig(loss=loss))


class Watching:
    """A monitor that scores one text and fails at its `last` look."""

    def __init__(self, last: int) -> None:
        self.last = last
        self.seen: list[tuple[int | None, float]] = []

    def copied(self) -> Watching:
        return self

    def segments(self, step: int | None, *, adapter: int, parent: int) -> list[Segment]:
        prompt = Segment(adapter=adapter, parent=parent, tokens=[20, 21], targets=[IGNORED] * 2)
        one, two = (
            Segment(adapter=adapter, parent=parent, tokens=[22, t], targets=[t, 30], after=0)
            for t in (23, 24)
        )
        return [prompt, one, two]

    def judge(self, step: int | None, losses: Sequence[float]) -> StepCheck | None:
        assert len(losses) == 2
        self.seen.append((step, losses[0]))
        return StepCheck(ok=len(self.seen) < self.last, shift=-0.1, margin=0.05)


def test_a_failed_check_ends_its_lesson_and_no_other(llama: BaseModel) -> None:
    failing, passing = Watching(3), Watching(100)
    lessons = [
        Lesson(learner=Learner(lora=fresh(llama)), windows=windows(seed=i), monitor=m, first_step=5)
        for i, m in enumerate((failing, passing))
    ]
    bad, good = learn_together(TrainingModel(llama), lessons)
    assert bad.quarantined and len(bad.losses) == len(bad.checks) == 3
    assert [step for step, _ in failing.seen] == [5, 6, 7]
    assert failing.seen[0][1] != failing.seen[1][1]
    assert not good.quarantined and len(good.checks) == len(good.losses) == 8
    alone = learn(llama, lessons[0].learner, windows(seed=0), config=LearnConfig(steps=3))
    assert bad.losses == pytest.approx(alone.losses, rel=0.02)


class Doubting(Watching):
    """Doubts what its first text says at every look; all three settle it, or never anything."""

    def __init__(self, last: int, *, settles: bool = True) -> None:
        super().__init__(last)
        self.settles = settles

    def segments(self, step: int | None, *, adapter: int, parent: int) -> list[Segment]:
        whole = super().segments(step, adapter=adapter, parent=parent)
        return whole if step is None else whole[:2]

    def judge(self, step: int | None, losses: Sequence[float]) -> StepCheck | None:
        assert len(losses) == (2 if step is None else 1)
        if step is None and self.settles:
            return super().judge(step, losses)
        self.seen.append((step, losses[0]))
        return None


def test_a_monitor_in_doubt_is_given_all_that_it_can_ask(llama: BaseModel) -> None:
    # The last of its looks, counted with those that left doubt, is the second step's whole one.
    doubting, calm = Doubting(4), Watching(100)
    lessons = [
        Lesson(learner=Learner(lora=fresh(llama)), windows=windows(seed=i), monitor=m, first_step=5)
        for i, m in enumerate((doubting, calm))
    ]
    bad, good = learn_together(TrainingModel(llama, torch.float32), lessons)
    assert [step for step, _ in doubting.seen] == [5, None, 6, None]
    # The same weights answer the same text alike, a few texts or all of them at once.
    for few, whole in zip(doubting.seen[::2], doubting.seen[1::2], strict=True):
        assert few[1] == pytest.approx(whole[1], rel=1e-4)
    assert bad.quarantined and len(bad.checks) == len(bad.losses) == 2
    assert bad.loss_after == bad.losses[-1]
    assert not good.quarantined and len(good.checks) == 8


def test_a_monitor_that_never_settles_is_no_pass(llama: BaseModel) -> None:
    lesson = Lesson(
        learner=Learner(lora=fresh(llama)), windows=windows(), monitor=Doubting(9, settles=False)
    )
    with pytest.raises(RuntimeError, match="gave no verdict"):
        learn_together(TrainingModel(llama), [lesson])


@pytest.mark.parametrize("steps", [0, 9, -1])
def test_steps_and_windows_are_needed(llama: BaseModel, steps: int) -> None:
    learner = Learner(lora=fresh(llama))
    with pytest.raises(DataError, match="teach nothing"):
        learn(llama, learner, windows(), config=LearnConfig(steps=steps))
    with pytest.raises(DataError, match="teach nothing"):
        learn(llama, learner, [], config=LearnConfig())


def test_what_is_learned_is_what_is_served(llama: BaseModel, make_lora: Any) -> None:
    lora, parent = make_lora(llama, seed=1), make_lora(llama, seed=2)
    window = windows(1)[0]
    config = LearnConfig(steps=1)
    done = online.learn(
        TrainingModel(llama, torch.float32),
        Lesson(learner=Learner(lora=lora, parent=(parent,)), windows=[window], config=config),
    )
    tokens = torch.tensor([window.tokens])
    for adapter, loss in ((lora, done.loss_before), (done.lora, done.loss_after)):
        with torch.inference_mode(), llama.rows(stack_rows([(parent, adapter)])) as model:
            logits = model(input_ids=tokens[:, :-1], use_cache=False).logits[0]
        served = torch.nn.functional.cross_entropy(logits, tokens[0, 1:])
        assert loss == pytest.approx(float(served), rel=1e-4)


def test_results_are_frozen(llama: BaseModel) -> None:
    result: LearnResult = learn(
        llama, Learner(lora=fresh(llama)), windows(), config=LearnConfig(steps=1)
    )
    assert not any(t.requires_grad for t in [*result.lora.a.values(), *result.lora.b.values()])

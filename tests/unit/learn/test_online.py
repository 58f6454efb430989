from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cambium.core.errors import DataError
from cambium.core.evidence import StepCheck
from cambium.learn import online
from cambium.learn.examples import Window
from cambium.learn.online import (
    IGNORED,
    LearnConfig,
    Learner,
    LearnResult,
    batch_windows,
    learn,
    trainable_copy,
)
from cambium.models.base import BaseModel, shared_rows, stack_rows
from cambium.models.lora import Lora, LoraConfig, fresh_lora, from_bytes, to_bytes


def windows(number: int = 6, length: int = 40, seed: int = 0) -> list[Window]:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(12, 512, (number, length), generator=generator)
    return [Window(tokens=tuple(row)) for row in drawn.tolist()]


def fresh(base: BaseModel, r: int = 4) -> Lora:
    return fresh_lora(LoraConfig(r=r, lora_alpha=2 * r), base.sites, seed=0)


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
    assert result.losses[0] == pytest.approx(result.loss_before, rel=1e-5)
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


def test_gradients_are_clipped(llama: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []

    class Recording(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            grads = [p.grad for g in self.param_groups for p in g["params"] if p.grad is not None]
            norms.append(math.sqrt(sum(float(g.pow(2).sum()) for g in grads)))
            return super().step(closure)

    for bound in (0.5, 0.01, 1e6):
        lora = trainable_copy(fresh(llama))
        sgd = Recording([*lora.a.values(), *lora.b.values()], lr=0.0)
        batch = batch_windows(windows(), 1024, 128)
        online.train_step(llama, lora, batch, sgd, parent=(), max_grad_norm=bound)
    free = norms[2]
    assert free > 0.5
    assert norms[0] == pytest.approx(0.5, rel=1e-3) and norms[1] == pytest.approx(0.01, rel=1e-3)


def test_micro_batches_add_up_to_one_gradient(llama: BaseModel) -> None:
    grads = []
    mixed = [*windows(3, 40), *windows(3, 17, seed=1), Window(tokens=tuple(range(12, 42)), learn_from=20)]  # fmt: skip  # noqa: E501
    for micro in (32, 4096):
        lora = trainable_copy(fresh(llama))
        sgd = torch.optim.SGD([*lora.b.values()], lr=0.0)
        batch = batch_windows(mixed, micro, 128)
        loss = online.train_step(llama, lora, batch, sgd, parent=(), max_grad_norm=1e9)
        grads.append((loss, torch.cat([b.grad.flatten() for b in lora.b.values() if b.grad is not None])))  # fmt: skip  # noqa: E501
    (one, first), (two, second) = grads
    assert one == pytest.approx(two, rel=2e-3)
    assert float((first - second).norm() / second.norm()) < 0.05  # bf16 passes


def test_a_failed_check_ends_the_call(llama: BaseModel) -> None:
    seen: list[Lora] = []

    def check(lora: Lora) -> StepCheck:
        seen.append(lora)
        return StepCheck(ok=len(seen) < 3, shift=-0.1, margin=0.05)

    result = learn(llama, Learner(lora=fresh(llama)), windows(), config=LearnConfig(), check=check)
    assert result.quarantined and len(result.losses) == len(result.checks) == len(seen) == 3
    assert to_bytes(seen[-1]) == to_bytes(result.lora) != to_bytes(seen[0])
    passed = learn(
        llama,
        Learner(lora=fresh(llama)),
        windows(),
        config=LearnConfig(steps=2),
        check=lambda lora: StepCheck(ok=True, shift=0.0, margin=0.05),
    )
    assert not passed.quarantined and len(passed.checks) == 2


@pytest.mark.parametrize("steps", [0, 9, -1])
def test_steps_and_windows_are_needed(llama: BaseModel, steps: int) -> None:
    learner = Learner(lora=fresh(llama))
    with pytest.raises(DataError, match="teach nothing"):
        learn(llama, learner, windows(), config=LearnConfig(steps=steps))
    with pytest.raises(DataError, match="teach nothing"):
        learn(llama, learner, [], config=LearnConfig())


@given(
    lengths=st.lists(st.integers(2, 129), min_size=1, max_size=40),
    steps=st.integers(1, 8),
    per_step=st.integers(1, 512),
    micro=st.integers(1, 512),
)
def test_every_window_is_dealt_to_one_step_of_the_call(
    lengths: list[int], steps: int, per_step: int, micro: int
) -> None:
    fed = [
        Window(tokens=tuple(range(1000 * i, 1000 * i + n)), learn_from=1 + i % (n - 1))
        for i, n in enumerate(lengths)
    ]
    config = LearnConfig(steps=steps, tokens_per_step=per_step, micro_tokens=micro)
    dealt = online._deal(fed, config, 128)
    assert 1 <= len(dealt) <= steps
    targets = [
        int(t)
        for step in dealt
        for part in step
        for row in part.targets
        for t in row[row != IGNORED]
    ]
    assert sorted(targets) == sorted(t for w in fed for t in w.tokens[w.learn_from :])
    assert all(p.num_targets == int((p.targets != IGNORED).sum()) for s in dealt for p in s)
    assert all(p.tokens.numel() <= max(micro, p.tokens.shape[1]) for s in dealt for p in s)


def test_what_is_learned_is_what_is_served(llama: BaseModel, make_lora: Any) -> None:
    lora, parent = make_lora(llama, seed=1), make_lora(llama, seed=2)
    tokens = torch.tensor([windows(1)[0].tokens])
    with torch.inference_mode():
        with llama.rows(shared_rows((parent, lora))) as model:
            trained = model(input_ids=tokens, use_cache=False).logits
        with llama.rows(stack_rows([(parent, lora)])) as model:
            served = model(input_ids=tokens, use_cache=False).logits
    assert torch.allclose(trained, served, atol=1e-4)


def test_results_are_frozen(llama: BaseModel) -> None:
    result: LearnResult = learn(
        llama, Learner(lora=fresh(llama)), windows(), config=LearnConfig(steps=1)
    )
    assert not any(t.requires_grad for t in [*result.lora.a.values(), *result.lora.b.values()])

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cambium.core.errors import DataError
from cambium.learn import consolidate as module
from cambium.learn.consolidate import (
    ConsolidateConfig,
    Replayed,
    consolidate,
    with_teacher,
)
from cambium.learn.examples import Window
from cambium.models.adapter import Adapter, virtual_tokens
from cambium.models.adapter_stack import AdapterStack
from cambium.models.base import BaseModel, stack_rows
from cambium.models.lora import Lora, LoraConfig, fresh_lora, to_bytes
from cambium.models.scoring import score
from cambium.models.soft_prompt import SoftPromptConfig, fresh_prompt
from cambium.models.training_model import TrainingModel

SMALL = ConsolidateConfig(epochs=4, lr=1e-2, windows_per_step=4, num_teacher_tokens=16)


def windows(number: int, seed: int, length: int = 40) -> list[Window]:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(12, 512, (number, length), generator=generator)
    return [Window(tokens=tuple(row)) for row in drawn.tolist()]


def fresh(base: BaseModel) -> Lora:
    return fresh_lora(LoraConfig(r=4, lora_alpha=8), base.sites, seed=0)


def mean_loss(base: BaseModel, texts: list[Window], adapters: tuple[Adapter, ...]) -> float:
    scores = score(base, [w.tokens for w in texts], adapters=adapters)
    return -float(torch.cat(scores).mean())


def divergence(base: BaseModel, texts: list[Window], lora: Adapter) -> float:
    """KL from the bare base to the base with `lora`, nats per token."""
    total = 0.0
    for one in texts:
        tokens = torch.tensor([one.tokens])
        with torch.inference_mode():
            with base.rows(None) as model:
                before = torch.log_softmax(model(tokens, use_cache=False).logits, dim=-1)
            read = torch.tensor([[*virtual_tokens([lora]), *one.tokens]])
            with base.rows(stack_rows([(lora,)])) as model:
                logits = model(read, use_cache=False).logits[:, lora.num_virtual :]
            after = torch.log_softmax(logits, dim=-1)
        total += float((before.exp() * (before - after)).sum(-1).mean())
    return total / len(texts)


def test_it_learns_the_new_and_replay_holds_the_old(llama: BaseModel) -> None:
    new, old = windows(8, 1), windows(8, 2)
    before = {k: v.clone() for k, v in llama.model.state_dict().items()}
    start = fresh(llama)
    first = to_bytes(start)
    taught = with_teacher(llama, old, (), config=SMALL)
    held = consolidate(TrainingModel(llama), start, new, taught, config=SMALL)
    free = consolidate(TrainingModel(llama), start, new, [], config=SMALL)
    assert mean_loss(llama, new, (held,)) < mean_loss(llama, new, ()) - 0.1
    assert divergence(llama, old, held) < 0.8 * divergence(llama, old, free)
    assert to_bytes(start) == first
    after = llama.model.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())
    assert not any(t.requires_grad for t in [*held.a.values(), *held.b.values()])


def test_the_same_inputs_give_the_same_bytes(llama: BaseModel) -> None:
    new, old = windows(6, 1), windows(4, 2)
    config = replace(SMALL, epochs=2)
    one, two, other = (
        to_bytes(
            consolidate(
                TrainingModel(llama),
                fresh(llama),
                new,
                with_teacher(llama, old, (), config=c),
                config=c,
            )
        )
        for c in (config, config, replace(config, seed=1))
    )
    assert one == two != other


def test_it_starts_from_what_it_is_given(llama: BaseModel, make_lora: Any) -> None:
    start = make_lora(llama, seed=3)
    still = consolidate(
        TrainingModel(llama), start, windows(4, 1), [], config=replace(SMALL, lr=0.0)
    )
    assert to_bytes(still) == to_bytes(start)


def test_nothing_to_learn_is_an_error(llama: BaseModel) -> None:
    with pytest.raises(DataError, match="nothing to consolidate"):
        consolidate(TrainingModel(llama), fresh(llama), [], [], config=SMALL)


def test_progress_is_told_and_can_end_it(llama: BaseModel) -> None:
    told: list[tuple[float, float]] = []
    consolidate(
        TrainingModel(llama),
        fresh(llama),
        windows(8, 1),
        [],
        config=SMALL,
        progress=lambda share, loss: told.append((share, loss)),
    )
    assert [share for share, _ in told] == pytest.approx([i / 8 for i in range(1, 9)])
    assert told[-1][1] < told[0][1]

    def stop(share: float, loss: float) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        consolidate(
            TrainingModel(llama), fresh(llama), windows(8, 1), [], config=SMALL, progress=stop
        )


def test_the_teacher_is_the_parent(llama: BaseModel, make_lora: Any) -> None:
    old, parent = windows(2, 2), make_lora(llama, seed=4)
    for adapters in ((), (parent,)):
        taught = with_teacher(llama, old, adapters, config=SMALL)
        tokens = torch.tensor([old[0].tokens])[:, :-1]
        with torch.inference_mode(), llama.rows(stack_rows([adapters])) as model:
            logits = model(tokens, use_cache=False).logits[0]
        expected = torch.log_softmax(logits / SMALL.temperature, dim=-1).topk(16)
        assert torch.allclose(taught[0].top_logprobs, expected.values, atol=1e-4)
        assert taught[0].top_ids.shape == (39, 16)
        assert (taught[0].top_ids == expected.indices).float().mean() > 0.99


def test_a_replayed_text_does_not_depend_on_its_neighbours(
    llama: BaseModel, make_lora: Any
) -> None:
    old = [*windows(3, 2), *windows(2, 3, length=23), *windows(1, 4, length=9)]
    held = with_teacher(llama, old, (), config=SMALL)
    model = TrainingModel(llama, torch.float32)
    results = []
    for budget in (1, 4096):
        stack = AdapterStack([make_lora(llama, seed=1)], llama.sites, dtype=torch.float32)
        stack.zero_grad()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "PASS_TOKENS", budget)
            loss = module._train_replay(model, stack, held, SMALL)
        results.append((loss, stack.grad))
    (alone, first), (together, second) = results
    assert alone == pytest.approx(together, rel=1e-4) and alone > 0
    assert float((first - second).norm() / second.norm()) < 1e-4


@given(
    number=st.integers(1, 30),
    num_replay=st.integers(0, 9),
    epochs=st.integers(1, 4),
    share=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
)
def test_an_epoch_reads_every_window_once(
    number: int, num_replay: int, epochs: int, share: float
) -> None:
    fed = [Window(tokens=(1, 2, 3))] * number
    config = ConsolidateConfig(epochs=epochs, windows_per_step=4, replay_share=share)
    plan = module._plan(fed, num_replay, config)
    new = [i for step, _ in plan for i in step]
    assert sorted(new) == sorted(list(range(number)) * epochs)
    replayed = [i for _, old in plan for i in old]
    counts = [replayed.count(i) for i in range(num_replay)]
    assert not num_replay or max(counts) - min(counts) <= 1
    if num_replay and share:
        assert len(replayed) >= share * len(new)


def test_the_budget_of_tokens_ends_it() -> None:
    fed = windows(10, 1, length=50)
    config = ConsolidateConfig(epochs=100, windows_per_step=2, max_tokens=350)
    assert len(module._plan(fed, 0, config)) == 4
    assert len(module._plan(fed, 0, replace(config, max_tokens=1))) == 1


def test_the_rate_rises_then_falls_to_a_tenth() -> None:
    rates = [module._schedule(i, 50) for i in range(50)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert max(rates) == 1.0 and sorted(rates[5:], reverse=True) == rates[5:]
    assert 0.1 <= rates[-1] < 0.11
    assert module._schedule(0, 1) == 1.0


def test_replayed_windows_are_values() -> None:
    ids = torch.zeros(2, 1, dtype=torch.long)
    one = Replayed(window=Window(tokens=(1, 2, 3)), top_ids=ids, top_logprobs=ids.float())
    with pytest.raises(AttributeError):
        one.window = Window(tokens=(1, 2))  # type: ignore[misc]


def test_a_soft_prompt_learns_the_new_and_replay_holds_the_old(llama: BaseModel) -> None:
    new, old = windows(8, 1), windows(8, 2)
    before = {k: v.clone() for k, v in llama.model.state_dict().items()}
    start = fresh_prompt(SoftPromptConfig(num_virtual_tokens=6), llama.model, seed=0)
    model = TrainingModel(llama, torch.float32)
    config = replace(SMALL, epochs=10, prompt_lr=0.1)
    taught = with_teacher(llama, old, (), config=config)
    alone = consolidate(model, start, new, [], config=config)
    both = consolidate(model, start, new, taught, config=config)
    again = consolidate(model, start, new, taught, config=config)
    assert both.to_bytes() == again.to_bytes() != alone.to_bytes()
    assert both.config == start.config
    assert mean_loss(llama, new, (alone,)) < mean_loss(llama, new, ()) - 0.3
    assert mean_loss(llama, new, (both,)) < mean_loss(llama, new, (start,)) - 0.1
    drift = {k: divergence(llama, old, one) for k, one in (("alone", alone), ("both", both))}
    assert drift["both"] < drift["alone"]
    assert all(torch.equal(v, before[k]) for k, v in llama.model.state_dict().items())


def test_a_teacher_may_be_a_soft_prompt(llama: BaseModel) -> None:
    """Beginning from the parent, what replay asks for is what the candidate already says."""
    parent = fresh_prompt(SoftPromptConfig(num_virtual_tokens=6), llama.model, seed=3)
    taught = with_teacher(llama, windows(4, 2), (parent,), config=SMALL)
    model = TrainingModel(llama, torch.float32)
    losses: list[float] = []
    still = replace(SMALL, epochs=1, prompt_lr=0.0, distill_weight=1e6)
    consolidate(model, parent, windows(4, 1), taught, config=still,
                progress=lambda share, loss: losses.append(loss))  # fmt: skip
    away = fresh_prompt(parent.config, llama.model, seed=4)
    consolidate(model, away, windows(4, 1), taught, config=still,
                progress=lambda share, loss: losses.append(loss))  # fmt: skip
    assert losses[0] < 1e-3 * losses[1]

from __future__ import annotations

from typing import Any

import pytest
import torch

from cambium.core.errors import DataError
from cambium.models.adapter_stack import AdapterStack, StackAdamW
from cambium.models.base import BaseModel
from cambium.models.lora import Lora, concatenated, to_bytes


def mixed(base: BaseModel, make_lora: Any) -> list[Lora]:
    return [
        make_lora(base, seed=1, r=4),
        make_lora(base, seed=2, r=8),
        make_lora(base, seed=3, r=5, targets=("q_proj", "down_proj")),
    ]


def stacked(base: BaseModel, adapters: list[Lora]) -> AdapterStack:
    return AdapterStack(adapters, base.sites, dtype=torch.float32)


def random_grad(stack: AdapterStack, seed: int) -> None:
    """Gradients where each adapter has weights, zero where it is padded."""
    generator = torch.Generator().manual_seed(seed)
    stack.zero_grad()
    for g in range(len(stack.adapters)):
        size = stack.compact(stack.weights, g).numel()
        stack.expand(torch.randn(size, generator=generator), stack.grad, g)


def test_adapters_come_out_as_they_went_in(llama: BaseModel, make_lora: Any) -> None:
    adapters = mixed(llama, make_lora)
    stack = stacked(llama, adapters)
    assert stack.rank == 8
    for g, lora in enumerate(adapters):
        assert to_bytes(stack.to_adapter(g)) == to_bytes(lora)
        own = stack.compact(stack.weights, g)
        assert own.numel() == lora.num_parameters()
        other = torch.zeros_like(stack.weights)
        stack.expand(own, other, g)
        assert torch.equal(other[g], stack.weights[g])


def test_halves_hold_the_scaled_update_and_zeros_elsewhere(
    llama: BaseModel, make_lora: Any
) -> None:
    adapters = mixed(llama, make_lora)
    stack = stacked(llama, adapters)
    for path in stack.paths:
        a, b = stack.halves(path)
        for g, lora in enumerate(adapters):
            found = b[g] @ a[g]
            if path in lora.a:
                expected = lora.config.scaling * lora.b[path] @ lora.a[path]
                assert torch.allclose(found, expected, atol=1e-6)
            else:
                assert not found.any()


def test_a_step_is_that_of_pytorchs_adamw(llama: BaseModel, make_lora: Any) -> None:
    adapters = mixed(llama, make_lora)
    stack = stacked(llama, adapters)
    rates, bounds = (1e-3, 5e-2, 1e-2), (0.5, 1e9, 0.1)
    adam = StackAdamW(
        stack,
        lr=torch.tensor(rates, dtype=torch.float64),
        max_grad_norm=torch.tensor(bounds),
    )
    peers = [torch.nn.Parameter(stack.compact(stack.weights, g)) for g in range(3)]
    theirs = [
        torch.optim.AdamW([p], lr=r, weight_decay=0.0) for p, r in zip(peers, rates, strict=True)
    ]
    for step in range(6):
        random_grad(stack, step)
        # The second adapter has but three steps to take.
        active = torch.tensor([True, step < 3, True])
        for g, (peer, optimizer) in enumerate(zip(peers, theirs, strict=True)):
            if active[g]:
                peer.grad = stack.compact(stack.grad, g)
                torch.nn.utils.clip_grad_norm_([peer], bounds[g])
                optimizer.step()
        adam.step(active)
    for g, peer in enumerate(peers):
        assert torch.allclose(stack.compact(stack.weights, g), peer, rtol=1e-5, atol=1e-7)
    assert adam.steps.tolist() == [6, 3, 6]
    a, b = stack.halves(stack.paths[0])
    moved = stack.to_adapter(1)
    assert torch.equal(a[1], moved.a[stack.paths[0]])
    assert torch.equal(b[1], moved.b[stack.paths[0]] * moved.config.scaling)


def test_padding_stays_zero(llama: BaseModel, make_lora: Any) -> None:
    stack = stacked(llama, mixed(llama, make_lora))
    empty = stack.weights == 0
    adam = StackAdamW(stack, lr=torch.full((3,), 0.1), max_grad_norm=torch.ones(3))
    random_grad(stack, 0)
    adam.step(torch.ones(3, dtype=torch.bool))
    assert empty.any() and not stack.weights[empty].any()


def test_gradients_add_up_by_owner(llama: BaseModel, make_lora: Any) -> None:
    adapters = [make_lora(llama, seed=i) for i in range(2)]
    stack = stacked(llama, adapters)
    path = stack.paths[0]
    a, b = stack.halves(path)
    by_a, by_b = torch.randn(3, *a.shape[1:]), torch.randn(3, *b.shape[1:])
    stack.zero_grad()
    stack.add_grad((path,), torch.tensor([1, 0, 1]), by_a, by_b)
    whole = stack.grad.clone()
    stack.zero_grad()
    sums = [torch.stack([x[1], x[0] + x[2]]) for x in (by_a, by_b)]
    stack.add_grad((path,), None, *sums)
    assert torch.allclose(whole, stack.grad, atol=1e-5)


def test_state_of_another_adapter_is_refused(llama: BaseModel, make_lora: Any) -> None:
    stack = stacked(llama, mixed(llama, make_lora))
    with pytest.raises(DataError, match="another adapter"):
        stack.expand(torch.zeros(3), stack.weights, 0)


def test_concatenation_is_the_sum_of_updates(llama: BaseModel, make_lora: Any) -> None:
    adapters = mixed(llama, make_lora)
    whole = concatenated(adapters)
    assert whole.config.r == 17 and whole.config.scaling == 1.0
    for path in llama.sites:
        expected = sum(
            lora.config.scaling * lora.b[path].double() @ lora.a[path].double()
            for lora in adapters
            if path in lora.a
        )
        found = whole.b[path].double() @ whole.a[path].double()
        assert torch.allclose(found, torch.as_tensor(expected), atol=1e-6)

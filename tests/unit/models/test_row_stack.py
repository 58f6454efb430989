from __future__ import annotations

import random
from typing import Any

import torch

from cambium.models.adapter import Adapter
from cambium.models.base import BaseModel, RowWeights, stack_rows
from cambium.models.row_stack import RowStack
from cambium.models.soft_prompt import SoftPromptConfig, fresh_prompt

NUM_ROWS = 5


def logits(base: BaseModel, weights: RowWeights | None) -> torch.Tensor:
    tokens = torch.arange(NUM_ROWS * 6).view(NUM_ROWS, 6) % 50 + 3
    with torch.inference_mode(), base.rows(weights) as model:
        return model(input_ids=tokens, use_cache=False).logits


def put(stack: RowStack, row: int, adapters: tuple[Adapter, ...], company: tuple[Adapter, ...] = ()) -> None:  # fmt: skip  # noqa: E501
    """As the engine does: what was stacked for the prefill is at hand, in whichever place."""
    stack.put(row, adapters, stack_rows([company, adapters]), 1)


def test_after_any_comings_and_goings_every_row_is_as_if_stacked_anew(
    llama: BaseModel, make_lora: Any
) -> None:
    small, large = make_lora(llama, seed=1, r=4), make_lora(llama, seed=2, r=16)
    queries = make_lora(llama, seed=3, targets=("q_proj",))
    choices: list[tuple[Adapter, ...]] = [(small,), (large,), (queries,), (small, queries), ()]
    chance, stack = random.Random(0), RowStack(NUM_ROWS)
    rows: list[tuple[Adapter, ...]] = [()] * NUM_ROWS
    for _ in range(40):
        row = chance.randrange(NUM_ROWS)
        rows[row] = chance.choice(choices) if not rows[row] else ()
        if rows[row]:
            put(stack, row, rows[row], chance.choice(choices))
        else:
            stack.clear(row)
        assert torch.equal(logits(llama, stack.weights), logits(llama, stack_rows(rows)))


def test_only_what_is_new_in_kind_is_stacked_anew(llama: BaseModel, make_lora: Any) -> None:
    stack = RowStack(NUM_ROWS)
    put(stack, 0, (make_lora(llama, seed=1, r=16),))
    first = stack.weights
    put(stack, 1, (make_lora(llama, seed=2, r=8),))
    put(stack, 2, (make_lora(llama, seed=3, targets=("v_proj",)),))
    stack.clear(1)
    assert stack.weights is first and first is not None
    put(stack, 3, (make_lora(llama, seed=4, r=32),))
    assert stack.weights is not first and stack.weights.rank == 32


def test_whoever_leaves_leaves_nothing_behind(llama: BaseModel, make_lora: Any) -> None:
    stack = RowStack(NUM_ROWS)
    put(stack, 0, (make_lora(llama, seed=1),))
    put(stack, 1, (make_lora(llama, seed=2),))
    stack.clear(0)
    assert stack.weights is not None
    halves = [half for own in stack.weights.sites.values() for pair in own for half in pair]
    assert all(not half[0].any() for half in halves) and any(half[1].any() for half in halves)
    stack.clear(1)
    assert stack.weights is None
    put(stack, 0, (make_lora(llama, seed=1),))
    stack.forget()
    assert stack.weights is None
    stack.clear(0)
    assert stack.weights is None


def test_virtual_tokens_come_and_go_too(llama: BaseModel, make_lora: Any) -> None:
    lora = make_lora(llama, seed=1)
    prompt = fresh_prompt(SoftPromptConfig(num_virtual_tokens=3), llama.model, seed=0)
    stack = RowStack(NUM_ROWS)
    put(stack, 0, (lora,))
    put(stack, 1, (prompt,))
    assert stack.weights is not None and stack.weights.prompts is not None
    assert torch.equal(stack.weights.prompts[1], prompt.prompt)
    stack.clear(1)
    assert stack.weights is not None and stack.weights.prompts is None
    assert torch.equal(
        logits(llama, stack.weights), logits(llama, stack_rows([(lora,), *[()] * 4]))
    )

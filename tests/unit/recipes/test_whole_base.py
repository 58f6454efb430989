from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from cambium.learn.examples import Window
from cambium.models.base import BaseModel
from cambium.recipes.whole_base import MAX_GRAD_NORM, WholeBase

NEW = Window(tokens=tuple(range(20, 40)))
PROMPTED = Window(tokens=tuple(range(60, 72)), learn_from=5)


def by_hand(model: nn.Module, window: Window) -> torch.Tensor:
    ids = torch.tensor([window.tokens])
    logits = model(input_ids=ids[:, :-1]).logits[0, window.learn_from - 1 :]
    return nn.functional.cross_entropy(logits, ids[0, window.learn_from :])


def test_a_step_is_plain_adamw_on_every_weight(llama: BaseModel) -> None:
    plain = copy.deepcopy(llama.model).requires_grad_(True)
    adam = torch.optim.AdamW(plain.parameters(), lr=1e-3, weight_decay=0.0)
    whole = WholeBase(llama, lr=2e-3)
    found = whole.step([(NEW, 1.0)], [(PROMPTED, 0.5), (NEW, 0.0)], rate=0.5)
    expected = by_hand(plain, NEW)
    (expected + by_hand(plain, PROMPTED) * 0.5 / 2).backward()
    nn.utils.clip_grad_norm_(plain.parameters(), MAX_GRAD_NORM)
    adam.step()
    assert found == pytest.approx(float(expected.detach()), abs=1e-5)
    for ours, theirs in zip(whole.base.model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-3, atol=1e-5)


def test_between_steps_nothing_asks_for_gradients(llama: BaseModel) -> None:
    whole = WholeBase(llama, lr=1e-3)
    losses = [whole.step([(NEW, 1.0)], []) for _ in range(6)]
    assert losses[-1] < losses[0]
    assert not any(p.requires_grad for p in whole.base.model.parameters())

from __future__ import annotations

from typing import Any

import pytest
import torch

from cambium.core.errors import DataError
from cambium.learn.examples import Window
from cambium.learn.objectives.ewc import fisher, online_fisher
from cambium.models.adapter_stack import AdapterStack
from cambium.models.base import BaseModel
from cambium.models.lora import LoraConfig, fresh_lora
from cambium.models.training_model import TrainingModel


def test_it_is_the_mean_square_of_each_texts_own_gradient(
    bench: Any, windows: list[Window]
) -> None:
    many = [Window(tokens=w.tokens, learn_from=k) for w in windows for k in (1, 5, 9, 11)]
    found = fisher(bench.model, bench.lora, many)
    squares, mean = [], []
    for w in many:

        def total(lora: Any, w: Window = w) -> torch.Tensor:
            logprobs = bench.logprobs(lora, w.tokens[:-1])
            picked = logprobs[torch.arange(len(w.tokens) - 1), torch.tensor(w.tokens[1:])]
            return picked[w.learn_from - 1 :].sum()

        grad = bench.autograd(total)[1]
        squares.append(grad.square())
        mean.append(grad)
    expected = torch.stack(squares).mean(0)
    assert float((found - expected).norm() / expected.norm()) < 1e-3
    # What libraries compute instead is far smaller.
    batched = torch.stack(mean).mean(0).square()
    assert float(batched.sum() / expected.sum()) < 0.5


def test_a_fresh_adapter_has_no_importance_in_a(llama: BaseModel, windows: list[Window]) -> None:
    lora = fresh_lora(LoraConfig(r=4), llama.sites, seed=0)
    model = TrainingModel(llama, torch.float32)
    found = fisher(model, lora, windows)
    stack = AdapterStack([lora], llama.sites, dtype=torch.float32)
    stack.expand(found, stack.weights, 0)
    importance = stack.to_adapter(0)
    assert all(float(a.abs().max()) == 0 for a in importance.a.values())
    assert all(float(b.abs().max()) > 0 for b in importance.b.values())


def test_the_parent_acts(bench: Any, make_lora: Any, windows: list[Window]) -> None:
    alone = fisher(bench.model, bench.lora, windows)
    above = fisher(bench.model, bench.lora, windows, parent=(make_lora(bench.base, seed=9),))
    assert not torch.allclose(alone, above, rtol=0.01)


def test_no_text_is_refused(bench: Any) -> None:
    with pytest.raises(DataError, match="no text"):
        fisher(bench.model, bench.lora, [])


def test_the_online_form_fades() -> None:
    found = online_fisher(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.0]), decay=0.9)
    assert torch.allclose(found, torch.tensor([1.4, 1.8]))

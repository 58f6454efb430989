"""One adapter in a stack of three rows, and what autograd says about it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from cambium.learn.examples import Window
from cambium.learn.objectives.objective import Objective, Place
from cambium.learn.passes import nothing, run_asks
from cambium.models.adapter_stack import AdapterStack
from cambium.models.base import BaseModel, shared_rows
from cambium.models.lora import Lora
from cambium.models.training_model import TrainingModel

PLACE = Place(adapter=0, parent=-1, nobody=1)


class Bench:
    """Runs objectives on a small base, through the stack and through plain autograd."""

    def __init__(self, base: BaseModel, lora: Lora) -> None:
        self.base = base
        self.lora = lora
        self.model = TrainingModel(base, torch.float32)
        self.stack = AdapterStack([lora, nothing()], base.sites, dtype=torch.float32)

    def step(self, objective: Objective, step: int = 0) -> tuple[float, Tensor]:
        """Returns the reported value and the gradient [P]."""
        ready = objective.prepare(step, PLACE)
        if ready is not None:
            run_asks([ready], lambda p, loss: self.model.eval_pass(p, self.stack, loss))
        self.stack.zero_grad()
        ask = objective.ask(step, PLACE)
        losses = run_asks([ask], lambda p, loss: self.model.train_pass(p, self.stack, loss))[0]
        return objective.value(step, losses), self.stack.compact(self.stack.grad, 0)

    def logprobs(self, lora: Lora | None, tokens: Sequence[int]) -> Tensor:
        """Returns log-probabilities [T V] after each token, with gradients by the adapter."""
        rows = shared_rows([lora]) if lora is not None else None
        with torch.enable_grad(), self.base.rows(rows) as model:
            logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
        return torch.log_softmax(logits, dim=1)

    def autograd(self, value: Callable[[Lora], Tensor]) -> tuple[float, Tensor]:
        """Returns a scalar of the adapter and its gradient in the stack's order."""
        a, b = (
            {p: t.clone().requires_grad_() for p, t in half.items()}
            for half in (self.lora.a, self.lora.b)
        )
        found = value(Lora(config=self.lora.config, a=a, b=b))
        found.backward()
        parts = [t.grad for p in sorted(a) for t in (a[p], b[p])]
        flat = [x.flatten() for x in parts if x is not None]
        return float(found.detach()), torch.cat(flat)


@pytest.fixture
def bench(llama: BaseModel, make_lora: Any) -> Bench:
    return Bench(llama, make_lora(llama, seed=3))


@pytest.fixture
def windows() -> list[Window]:
    generator = torch.Generator().manual_seed(2)
    drawn = torch.randint(12, 512, (3, 24), generator=generator).tolist()
    return [Window(tokens=tuple(row[: 24 - 3 * i])) for i, row in enumerate(drawn)]

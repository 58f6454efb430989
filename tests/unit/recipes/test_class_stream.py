from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cambium.recipes.class_stream import (
    ClassStream,
    ClassStreamConfig,
    ClassStreamResult,
    split_classes,
)

CONFIG = ClassStreamConfig(classes_per_task=2, epochs=8, lr=2e-2, batch=16, buffer_per_class=4)


class Linear:
    """Gaussian clouds through one trained matrix."""

    def __init__(self, data: Tensor, num_classes: int) -> None:
        self.data = data
        self.weights = [torch.eye(data.shape[1]), torch.zeros(num_classes, data.shape[1])]
        for w in self.weights:
            w.requires_grad_()

    def parameters(self) -> list[Tensor]:
        return self.weights

    def features(self, items: Tensor) -> Tensor:
        return torch.nn.functional.normalize(self.data[items] @ self.weights[0], dim=1)


def stream(config: ClassStreamConfig) -> ClassStream:
    chance = torch.Generator().manual_seed(1)
    means = torch.randn(8, 6, generator=chance)
    labels = torch.arange(8).repeat(30)
    data = means[labels] + 0.5 * torch.randn(240, 6, generator=chance)
    model = Linear(data, 8)
    return ClassStream(model, train=labels[:160], test=labels[160:], where=160, config=config)


def run(config: ClassStreamConfig) -> ClassStreamResult:
    return stream(config).run(lambda _: None)


def test_measures_follow_their_definitions() -> None:
    found = ClassStreamResult(
        accuracy=[[90.0], [70.0, 80.0], [75.0, 50.0, 100.0]], own_task=[[90.0], [90.0, 80.0]]
    )
    assert found.average() == 75
    assert found.backward_transfer() == (75 - 90 + 50 - 80) / 2
    assert found.forgetting() == (90 - 75 + 80 - 50) / 2


def test_a_buffer_keeps_what_plain_learning_forgets() -> None:
    plain = run(replace(CONFIG, buffer_per_class=0, separate=False))
    replay = run(CONFIG)
    joint = stream(CONFIG).joint(lambda _: None)
    assert plain.average() < replay.average() - 15
    assert replay.average() <= joint + 5
    assert plain.forgetting() > replay.forgetting()
    # Within a task nothing has to be told apart from old classes.
    assert sum(plain.own_task[-1]) > sum(plain.accuracy[-1])


@pytest.mark.parametrize("term", ["ewc_strength", "si_strength", "distill_weight"])
@pytest.mark.parametrize("buffer", [0, 4])
def test_each_term_acts(term: str, buffer: int) -> None:
    config = replace(CONFIG, buffer_per_class=buffer, separate=bool(buffer))
    without = stream(config)
    without.run(lambda _: None)
    held = stream(replace(config, **{term: 50.0 if term != "distill_weight" else 1.0}))
    held.run(lambda _: None)
    assert not torch.allclose(held._flat(), without._flat(), atol=1e-3)
    assert torch.isfinite(held._flat()).all()


def test_the_same_seed_gives_the_same_stream() -> None:
    one, two, other = run(CONFIG), run(CONFIG), run(replace(CONFIG, seed=3))
    assert one == two != other


def test_labels_become_numbers_in_order() -> None:
    numbers, names = split_classes(["b", "a", "b"])
    assert numbers.tolist() == [1, 0, 1] and names == ["a", "b"]

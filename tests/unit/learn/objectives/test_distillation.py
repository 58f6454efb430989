from __future__ import annotations

import pytest
import torch

from cambium.learn.objectives.distillation import distillation
from cambium.models.chunked_head import HeadLoss


def loss_of(logits: torch.Tensor, loss: HeadLoss) -> tuple[torch.Tensor, torch.Tensor]:
    losses, grad = loss(logits.clone(), slice(0, len(logits)), True)
    assert grad is not None
    return losses, grad


def teaching(teacher: torch.Tensor, k: int, temperature: float) -> HeadLoss:
    top = torch.log_softmax(teacher / temperature, dim=-1).topk(k)
    weights = torch.ones(len(teacher))
    return distillation(top.indices, top.values, weights, temperature=temperature)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_with_all_tokens_kept_it_is_the_full_divergence(temperature: float) -> None:
    generator = torch.Generator().manual_seed(3)
    teacher, student = (torch.randn(7, 12, generator=generator) for _ in range(2))
    p = torch.log_softmax(teacher.double() / temperature, dim=-1)
    wide = student.double().requires_grad_()
    q = torch.log_softmax(wide / temperature, dim=-1)
    full = temperature**2 * (p.exp() * (p - q)).sum(1)
    full.sum().backward()
    assert wide.grad is not None
    losses, grad = loss_of(student, teaching(teacher, 11, temperature))
    assert torch.allclose(losses.double(), full, rtol=1e-4, atol=1e-5)
    assert torch.allclose(grad.double(), wide.grad, atol=1e-4)
    part, _ = loss_of(student, teaching(teacher, 4, temperature))
    assert bool((part > 0).all()) and bool((part <= full + 1e-6).all())
    own, own_grad = loss_of(teacher, teaching(teacher, 4, temperature))
    assert own.abs().max() < 1e-5 and own_grad.abs().max() < 1e-5


def test_its_gradient_is_that_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(4)
    teacher, student = (torch.randn(3, 10, generator=generator).double() for _ in range(2))
    loss = teaching(teacher, 4, 2.0)
    _, grad = loss_of(student, loss)
    step = 1e-5
    for i in range(3):
        for j in range(10):
            up, down = student.clone(), student.clone()
            up[i, j] += step
            down[i, j] -= step
            slope = (loss_of(up, loss)[0][i] - loss_of(down, loss)[0][i]) / (2 * step)
            assert float(grad[i, j]) == pytest.approx(float(slope), abs=1e-5)


def test_a_certain_teacher_gives_finite_numbers() -> None:
    teacher = torch.zeros(2, 50)
    teacher[:, 3] = 80.0
    losses, grad = loss_of(-teacher, teaching(teacher, 8, 1.0))
    assert bool(torch.isfinite(losses).all()) and bool(torch.isfinite(grad).all())

from __future__ import annotations

import pytest
import torch

from cambium.models.chunked_head import (
    HEAD_CHUNK,
    cross_entropy,
    head_losses,
)


def head(positions: int, words: int = 40) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(positions)
    hidden = torch.randn(positions, 16, generator=generator)
    weight = torch.randn(words, 16, generator=generator)
    return hidden.requires_grad_(), weight, torch.randn(words, generator=generator)


@pytest.mark.parametrize("positions", [1, HEAD_CHUNK, HEAD_CHUNK + 3])
@pytest.mark.parametrize("with_bias", [False, True])
def test_it_is_cross_entropy_with_its_gradient(positions: int, with_bias: bool) -> None:
    hidden, weight, bias = head(positions)
    added = bias if with_bias else None
    targets = torch.arange(positions) % 40
    weights = torch.linspace(0.1, 2, positions)
    found = head_losses(hidden, weight, added, cross_entropy(targets, weights))
    found.sum().backward()
    assert hidden.grad is not None
    got, hidden.grad = hidden.grad, None
    logits = torch.nn.functional.linear(hidden, weight, added)
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    (expected * weights).sum().backward()
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.allclose(got, hidden.grad, atol=1e-5)
    with torch.no_grad():
        again = head_losses(hidden, weight, added, cross_entropy(targets, weights))
    assert torch.equal(again, found)


def test_what_was_thought_impossible_has_its_exact_loss() -> None:
    logits = torch.tensor([[200.0, 0.0, 1.0], [0.0, 1.0, 2.0], [0.0, -3e4, 0.0]])
    targets = torch.tensor([1, 1, 1])
    found, grad = cross_entropy(targets, torch.ones(3))(logits.clone(), slice(0, 3), True)
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    assert torch.allclose(found, expected) and grad is not None
    assert grad[0].tolist() == [1, -1, 0]

from __future__ import annotations

import pytest
import torch

from cambium.learn.objectives.si import along_path, importance


def test_on_a_quadratic_the_path_is_the_fall_of_the_loss() -> None:
    # For small steps, the sum of -g dw over all weights is the whole fall of the loss.
    scale = torch.tensor([[1.0, 10.0, 0.0]])
    weights = torch.tensor([[2.0, 1.0, 5.0]])
    loss = lambda w: float((0.5 * scale * w.square()).sum())  # noqa: E731
    path, start = torch.zeros_like(weights), weights.clone()
    for _ in range(12_000):
        grad = scale * weights
        after = weights - 1e-3 * grad
        path = along_path(path, grad, weights, after)
        weights = after
    assert float(path.sum()) == pytest.approx(loss(start) - loss(weights), rel=0.01)
    assert float(path[0, 2]) == 0
    # Each weight's importance is then half its curvature, as in the paper's eq. 5 at xi = 0.
    found = importance(path, weights - start, kappa=1e-9)
    assert found[0, :2].tolist() == pytest.approx([0.5, 5.0], rel=0.03)


def test_it_survives_ways_as_short_as_a_few_adam_steps() -> None:
    way = torch.full((1, 10), 8e-4)
    path = torch.full((1, 10), 1e-4)
    found = importance(path, way)
    assert found.tolist()[0] == pytest.approx([1e-4 / (6.4e-7 * 1.001)] * 10, rel=1e-3)
    assert float(importance(-path, way).max()) == 0
    assert torch.isfinite(importance(torch.zeros(1, 3), torch.zeros(1, 3))).all()

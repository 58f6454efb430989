from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cambium.learn.objectives.proximal import normalised, pull_back


@given(
    weight=st.floats(-10, 10), anchor=st.floats(-10, 10), force=st.floats(0, 1e4),
    lr=st.floats(1e-5, 1),
)  # fmt: skip
def test_it_minimises_distance_and_penalty(
    weight: float, anchor: float, force: float, lr: float
) -> None:
    w, a, i, r = (torch.tensor([[x]], dtype=torch.float64) for x in (weight, anchor, force, lr))
    found = pull_back(w, a, i, r)
    slope = (found - w) / r + i * (found - a)
    assert abs(float(slope)) <= 1e-6 * max(1.0, force * 20, 20 / lr)
    assert min(weight, anchor) - 1e-9 <= float(found) <= max(weight, anchor) + 1e-9


def test_it_contracts_where_an_explicit_step_explodes() -> None:
    anchor, lr = torch.zeros(1, 1), torch.tensor([[0.1]])
    explicit = near = torch.ones(1, 1)
    for _ in range(8):
        explicit = explicit - lr * 100 * explicit
        near = pull_back(near, anchor, torch.full((1, 1), 100.0), lr)
    assert float(explicit.abs()) > 4e7 and float(near) < 1e-8


def test_each_row_gets_mean_one() -> None:
    found = normalised(torch.tensor([[1.0, 3.0], [0.0, 0.0]]))
    assert found.tolist() == [[0.5, 1.5], [0.0, 0.0]]
    assert float(normalised(torch.full((1, 4), 1e-20)).mean()) == pytest.approx(1)

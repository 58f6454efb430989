"""What the simulation draws is what it says, so that its rows mean what they say."""

from __future__ import annotations

import numpy as np
import pytest

from cambium.bench.look_rule import P_DISCORDANT, heavy_tailed, right_or_wrong


@pytest.mark.parametrize("draw", [right_or_wrong, heavy_tailed])
@pytest.mark.parametrize("effect", [0.0, -0.03])
def test_both_kinds_of_items_have_the_mean_and_spread_that_was_planned(draw, effect: float) -> None:
    values = draw(np.random.default_rng(0), effect, 400_000)
    assert values.mean() == pytest.approx(effect, abs=0.002)
    lost = effect**2 if draw is right_or_wrong else 0.0  # of a second moment that is fixed
    assert values.var() == pytest.approx(P_DISCORDANT - lost, rel=0.02)

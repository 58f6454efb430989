from __future__ import annotations

import numpy as np
import pytest
import torch

from cambium.core.errors import ModelError
from cambium.models.sampling import SamplingConfig, sample, token_logprob

LOGITS = torch.tensor([1.0, 3.0, 0.5, 2.5, -1.0, 2.9])


def draw(config: SamplingConfig, logits: torch.Tensor = LOGITS, **kwargs: list[int]) -> int:
    generator = torch.Generator().manual_seed(config.seed)
    return sample(logits, config, previous=kwargs.get("previous", []), generator=generator)


def shares(config: SamplingConfig, previous: list[int], number: int = 20_000) -> np.ndarray:
    generator = torch.Generator().manual_seed(0)
    ids = [sample(LOGITS, config, previous=previous, generator=generator) for _ in range(number)]
    return np.bincount(ids, minlength=len(LOGITS)) / number


def oracle(config: SamplingConfig, previous: list[int]) -> np.ndarray:
    """The distribution in double precision, written from OpenAI's description."""
    scores = LOGITS.double().numpy().copy()
    for token, bias in config.logit_bias.items():
        scores[token] += bias
    for token in set(previous):
        scores[token] -= previous.count(token) * config.frequency_penalty
        scores[token] -= config.presence_penalty
    odds = np.exp(scores / config.temperature)
    probabilities = odds / odds.sum()
    kept, total = np.zeros_like(probabilities), 0.0
    for token in np.argsort(-probabilities, kind="stable"):
        if total >= config.top_p:
            break
        kept[token] = probabilities[token]
        total += probabilities[token]
    return kept / kept.sum()


@pytest.mark.parametrize(
    "config",
    [
        SamplingConfig(),
        SamplingConfig(temperature=0.5),
        SamplingConfig(temperature=2.0, top_p=0.8),
        SamplingConfig(top_p=0.5),
        SamplingConfig(frequency_penalty=0.7),
        SamplingConfig(presence_penalty=1.2),
        SamplingConfig(frequency_penalty=-0.5, presence_penalty=0.4, logit_bias={4: 4.0, 1: -100}),
    ],
)
def test_draws_follow_the_distribution(config: SamplingConfig) -> None:
    previous = [1, 3, 3, 3]
    expected = oracle(config, previous)
    found = shares(config, previous, 6000)
    assert np.all(found[expected == 0] == 0)
    # Five standard deviations of a share.
    assert np.all(np.abs(found - expected) < 5 * np.sqrt(expected * (1 - expected) / 6000) + 1e-9)


@pytest.mark.parametrize("temperature", [0.0, 1e-30, 1e-5])
def test_no_temperature_is_the_likeliest(temperature: float) -> None:
    assert all(draw(SamplingConfig(temperature=temperature, seed=s)) == 1 for s in range(5))
    assert draw(SamplingConfig(temperature=temperature, logit_bias={4: 50.0})) == 4
    penalty = SamplingConfig(temperature=temperature, presence_penalty=0.2)
    assert draw(penalty, previous=[1]) == 5


def test_an_empty_nucleus_still_holds_the_likeliest() -> None:
    assert {draw(SamplingConfig(top_p=0.0, seed=s)) for s in range(20)} == {1}


def test_a_seed_repeats_and_another_differs() -> None:
    config = SamplingConfig(temperature=1.0)
    one, two = (torch.Generator().manual_seed(7) for _ in range(2))
    first = [sample(LOGITS, config, previous=[], generator=one) for _ in range(50)]
    assert first == [sample(LOGITS, config, previous=[], generator=two) for _ in range(50)]
    other = torch.Generator().manual_seed(8)
    assert first != [sample(LOGITS, config, previous=[], generator=other) for _ in range(50)]


def test_what_is_given_stays_as_it_is() -> None:
    logits = LOGITS.clone()
    draw(SamplingConfig(frequency_penalty=1, logit_bias={0: 5}), logits, previous=[0, 1])
    assert torch.equal(logits, LOGITS)


def test_an_output_that_is_no_number_is_refused() -> None:
    broken = LOGITS.clone()
    broken[2] = float("nan")
    for temperature in (0.0, 1.0):
        with pytest.raises(ModelError, match="not a number"):
            draw(SamplingConfig(temperature=temperature), broken)


def test_logprobs_are_of_the_model_as_it_stands() -> None:
    found = token_logprob(LOGITS, 3, 2)
    expected = LOGITS.double().numpy()
    expected = expected - np.log(np.exp(expected).sum())
    assert found.logprob == pytest.approx(expected[3], abs=1e-6)
    assert [token for token, _ in found.top] == [1, 5]
    assert [value for _, value in found.top] == pytest.approx([expected[1], expected[5]], abs=1e-6)
    assert token_logprob(LOGITS, 3, 0).top == ()

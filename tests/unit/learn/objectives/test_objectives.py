"""Every objective against plain autograd of its formula, written out with the base alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from cambium.core.errors import DataError
from cambium.learn.examples import Window
from cambium.learn.objectives import OBJECTIVES, UNLABELLED
from cambium.learn.objectives.masked import MASK_TOKEN, SPAN, with_gaps
from cambium.learn.objectives.objective import ObjectiveConfig
from cambium.models.lora import Lora
from cambium.models.packing import IGNORED

FREE = ObjectiveConfig(trust_weight=0.0, diversity_weight=0.0, max_entropy_share=1.0)


def close(found: Tensor, expected: Tensor, share: float = 1e-4) -> bool:
    return float((found - expected).norm()) <= share * float(expected.norm())


def nll(bench: Any, lora: Lora | None, tokens: Sequence[int], start: int = 1) -> Tensor:
    logprobs = bench.logprobs(lora, tokens[:-1])
    picked = logprobs[torch.arange(len(tokens) - 1), torch.tensor(tokens[1:])]
    return -picked[start - 1 :]


def test_the_task_loss_is_the_mean_over_all_tokens(bench: Any, windows: list[Window]) -> None:
    value, grad = bench.step(OBJECTIVES["task"]([windows], FREE))
    expected, oracle = bench.autograd(
        lambda lora: torch.cat([nll(bench, lora, w.tokens) for w in windows]).mean()
    )
    assert value == pytest.approx(expected, rel=1e-5)
    assert close(grad, oracle)


def entropies(bench: Any, lora: Lora, windows: Sequence[Window]) -> tuple[Tensor, Tensor]:
    logprobs = torch.cat([bench.logprobs(lora, w.tokens[:-1]) for w in windows])
    return -(logprobs.exp() * logprobs).sum(1), logprobs.exp().mean(0)


def test_entropy_alone(bench: Any, windows: list[Window]) -> None:
    value, grad = bench.step(OBJECTIVES["entropy"]([windows], FREE))
    expected, oracle = bench.autograd(lambda lora: entropies(bench, lora, windows)[0].mean())
    assert value == pytest.approx(expected, rel=1e-5)
    assert close(grad, oracle)


def test_entropy_of_the_sure_positions_and_a_broad_mean(bench: Any, windows: list[Window]) -> None:
    each, _ = entropies(bench, bench.lora, windows)
    ordered = each.detach().sort().values
    middle = float(ordered[30:32].mean())
    share = middle / math.log(512)
    config = ObjectiveConfig(max_entropy_share=share, diversity_weight=0.7, trust_weight=0.0)
    _, grad = bench.step(OBJECTIVES["entropy"]([windows], config))
    chosen = (each.detach() <= middle).float()
    assert 0 < chosen.sum() < len(chosen)

    def formula(lora: Lora) -> Tensor:
        own, mean = entropies(bench, lora, windows)
        return (own * chosen).mean() + 0.7 * (mean * mean.log()).sum()

    _, oracle = bench.autograd(formula)
    assert close(grad, oracle, 1e-3)


@pytest.mark.parametrize("name", ["entropy", "prompt"])
def test_the_divergence_from_the_parent_is_part_of_the_loss(
    bench: Any, windows: list[Window], name: str
) -> None:
    own = OBJECTIVES[name]([windows], FREE)
    held = OBJECTIVES[name]([windows], ObjectiveConfig(
        trust_weight=0.5, diversity_weight=0.0, max_entropy_share=1.0))  # fmt: skip
    _, free = bench.step(own)
    _, grad = bench.step(held)

    def divergence(lora: Lora) -> Tensor:
        found = []
        for w in windows:
            p = bench.logprobs(None, w.tokens[:-1]).detach()
            q = bench.logprobs(lora, w.tokens[:-1])
            top = p.topk(20, dim=1)
            rest_p = torch.log1p(-top.values.exp().sum(1))
            kept = q.gather(1, top.indices)
            rest_q = torch.log1p(-kept.exp().sum(1))
            found.append((top.values.exp() * (top.values - kept)).sum(1)
                         + rest_p.exp() * (rest_p - rest_q))  # fmt: skip
        return 0.5 * torch.cat(found).mean()

    _, oracle = bench.autograd(divergence)
    assert close(grad - free, oracle, 1e-3)


def test_prompt_likelihood_is_of_all_tokens(bench: Any, windows: list[Window]) -> None:
    value, grad = bench.step(OBJECTIVES["prompt"]([windows], FREE))
    _, task = bench.step(OBJECTIVES["task"]([windows], FREE))
    assert close(grad, task) and value > 0


def test_masked_spans_are_predicted_from_a_text_with_gaps(bench: Any) -> None:
    tokens = tuple(range(100, 140))
    objective = OBJECTIVES["masked"]([[Window(tokens=tokens)]], FREE)
    value, grad = bench.step(objective, 2)
    segment = with_gaps(tokens, seed=2, adapter=0, parent=-1)
    missing = [i for i, t in enumerate(segment.targets) if t != IGNORED]
    assert SPAN <= len(missing) <= 2 * SPAN
    for i in missing:
        assert segment.targets[i] == tokens[i + 1]
        assert i + 1 >= len(segment.tokens) or segment.tokens[i + 1] == MASK_TOKEN
    assert with_gaps(tokens, seed=3, adapter=0, parent=-1) != segment

    def formula(lora: Lora) -> Tensor:
        logprobs = bench.logprobs(lora, segment.tokens)
        return -torch.stack([logprobs[i, segment.targets[i]] for i in missing]).mean()

    expected, oracle = bench.autograd(formula)
    assert value == pytest.approx(expected, rel=1e-5)
    assert close(grad, oracle)


def pairs() -> list[Window]:
    return [
        Window(tokens=tuple(range(20, 34)), learn_from=9, rejected=(300, 301, 302)),
        Window(tokens=tuple(range(50, 60)), learn_from=1, rejected=(310, 311)),
    ]


@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_preference_is_the_published_loss(bench: Any, beta: float) -> None:
    objective = OBJECTIVES["preference"]([pairs()], ObjectiveConfig(beta=beta))
    value, grad = bench.step(objective)

    def formula(lora: Lora) -> Tensor:
        found = []
        for w in pairs():
            sides = []
            for tokens in (w.tokens, w.tokens[: w.learn_from] + w.rejected):
                own = -nll(bench, lora, tokens, w.learn_from).sum()
                sides.append(own + nll(bench, None, tokens, w.learn_from).sum().detach())
            found.append(torch.nn.functional.softplus(-beta * (sides[0] - sides[1])))
        return torch.stack(found).mean()

    expected, oracle = bench.autograd(formula)
    assert value == pytest.approx(expected, rel=1e-4)
    assert close(grad, oracle, 1e-3)
    assert value != pytest.approx(math.log(2), rel=1e-3)


def test_the_next_passage_is_to_be_likelier_than_another(bench: Any, windows: list[Window]) -> None:
    value, grad = bench.step(OBJECTIVES["passage"]([windows], FREE))
    following = [*windows[1:], windows[0]]

    def formula(lora: Lora) -> Tensor:
        found = []
        for w, other in zip(windows, following, strict=True):
            half = len(w.tokens) // 2
            swapped = w.tokens[:half] + other.tokens[len(other.tokens) // 2 :]
            own = nll(bench, lora, w.tokens, half).mean()
            found.append(torch.nn.functional.softplus(own - nll(bench, lora, swapped, half).mean()))
        return torch.stack(found).mean()

    expected, oracle = bench.autograd(formula)
    assert value == pytest.approx(expected, rel=1e-4)
    assert close(grad, oracle, 1e-3)


@pytest.mark.parametrize("name", sorted(UNLABELLED))
def test_beyond_its_region_an_adapter_is_lost(bench: Any, windows: list[Window], name: str) -> None:
    for bound, lost in ((1e-4, True), (100.0, False)):
        config = ObjectiveConfig(max_divergence=bound, min_entropy_share=0.0)
        objective = OBJECTIVES[name]([windows], config)
        bench.step(objective)
        assert objective.is_lost is lost
    collapsed = OBJECTIVES[name]([windows], ObjectiveConfig(max_divergence=100, min_entropy_share=2.0))  # fmt: skip  # noqa: E501
    bench.step(collapsed)
    assert collapsed.is_lost


@pytest.mark.parametrize("name", ["masked", "passage"])
def test_what_is_too_short_is_refused(name: str) -> None:
    with pytest.raises(DataError, match=r"short|passages"):
        OBJECTIVES[name]([[Window(tokens=(1, 2, 3))]], FREE)

"""From logits to a token: penalties, bias, temperature, nucleus, and the log-probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cambium.core.errors import ModelError

_GREEDY_BELOW = 1e-6


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How one answer is drawn, in OpenAI's terms.

    Args:
        temperature: 0 (or below a millionth) takes the likeliest token.
        top_p: smallest set of tokens with at least this probability, in [0, 1]; never empty.
        seed: the same seed, prompt and adapters give the same answer.
        logit_bias: added to the logits of these token ids.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TokenLogprob:
    """A token's log-probability under the model as it stands, and its likeliest rivals."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def sample(
    logits: Tensor, config: SamplingConfig, *, previous: Sequence[int], generator: torch.Generator
) -> int:
    """Returns the next token id.

    Args:
        logits: shape [V], any float type.
        previous: ids generated so far, for the penalties.

    Raises:
        ModelError: the logits hold NaN, so that no token is likelier than another.
    """
    scores = logits.float()
    if bool(scores.isnan().any()):
        raise ModelError("the model's output is not a number", mend="check the adapter's weights")
    if config.frequency_penalty or config.presence_penalty or config.logit_bias:
        scores = scores.clone()
        for token, bias in config.logit_bias.items():
            scores[token] += bias
        if previous:
            counts = torch.bincount(torch.tensor(previous), minlength=len(scores)).float()
            scores -= config.frequency_penalty * counts + config.presence_penalty * (counts > 0)
    if config.temperature < _GREEDY_BELOW:
        return int(scores.argmax())
    # Shifted first, so that a small temperature cannot push the largest score to infinity.
    probabilities = torch.softmax((scores - scores.max()) / config.temperature, dim=-1)
    if config.top_p < 1:
        ordered, ids = probabilities.sort(descending=True, stable=True)
        kept = ordered.cumsum(0) - ordered < config.top_p
        kept[0] = True
        probabilities = torch.zeros_like(probabilities).scatter(0, ids[kept], ordered[kept])
    return _drawn(probabilities, generator)


def _drawn(probabilities: Tensor, generator: torch.Generator) -> int:
    """Returns an index by its probability, from one uniform number where `multinomial` draws V."""
    total = probabilities.double().cumsum(0)
    point = torch.rand(1, generator=generator, dtype=torch.float64) * total[-1]
    # The first index whose total is beyond the point, so never one of probability zero.
    found = int(torch.searchsorted(total, point, right=True))
    return found if found < len(total) else int(probabilities.argmax())


def token_logprob(logits: Tensor, token: int, num_top: int) -> TokenLogprob:
    """Returns the log-probability of `token` with the `num_top` likeliest, from logits [V]."""
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    top: tuple[tuple[int, float], ...] = ()
    if num_top:
        values, ids = logprobs.topk(num_top)
        top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return TokenLogprob(token_id=token, logprob=float(logprobs[token]), top=top)

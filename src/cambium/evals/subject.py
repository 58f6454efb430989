"""What evals ask of a model, whoever runs it: a process of its own, a server, a candidate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """How likely a model finds a text.

    Args:
        logprob: sum over the scored tokens, in nats.
        num_tokens: how many tokens were scored.
        is_greedy: each scored token was the likeliest at its place.
    """

    logprob: float
    num_tokens: int
    is_greedy: bool


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One text to be written.

    Args:
        until: the text ends before the first of these strings.
        temperature: 0 takes the likeliest token each time.
        seed: of this text alone; neighbours in a batch do not change it.
    """

    prompt: str
    max_tokens: int
    until: tuple[str, ...] = ()
    temperature: float = 0.0
    seed: int = 0


class Subject(Protocol):
    """A model under evaluation; every call takes a whole batch and answers in its order.

    Batches share prefixes and passes, so ask for much at once. The three calls mean what
    `loglikelihood`, `loglikelihood_rolling` and `generate_until` mean in lm-evaluation-harness.
    """

    @property
    def name(self) -> str:
        """As a person calls it, such as `stable` or `notes@sha256:…`."""
        ...

    @property
    def digest(self) -> str:
        """Of base and adapters together: equal digests give equal answers."""
        ...

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood]:
        """Returns the likelihood of each continuation after its context."""
        ...

    def loglikelihood_rolling(self, texts: Sequence[str]) -> list[Likelihood]:
        """Returns the likelihood of each whole text, however long."""
        ...

    def generate(self, requests: Sequence[Generation]) -> list[str]:
        """Returns what the model writes after each prompt."""
        ...

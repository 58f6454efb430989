"""What every measure of drift is made of: who is measured, on what, and what was read.

A measure observes one model at a time and compares two observations afterwards, item by item.
So the bare base is observed once for a whole line of revisions, and each revision once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any, Literal

import numpy as np
from scipy import stats

from cambium.core.canonical import digest_json
from cambium.evals.errors import GateBroken
from cambium.evals.statistics import clustered_interval
from cambium.evals.subject import Subject
from cambium.models.representing import Represent

CONFIDENCE = 0.975
Direction = Literal["up", "down", "either"]
Embed = Callable[[list[str]], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One model to be observed, with what its update replayed and what had streamed in.

    Args:
        represent: the model's own vectors of texts; without it there is no concept drift.
        replayed: vectors of the replay's texts [n D]; `streamed` those of all that came in
            meanwhile [m D]. The bare base has neither.
    """

    subject: Subject
    represent: Represent | None = None
    replayed: np.ndarray | None = None
    streamed: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class DriftInputs:
    """What all arms of a series are asked; it is never changed within one.

    Args:
        embed: the sentence encoder, for what the model writes; without it no diversity.
        persona: rows with `question`, `answer_matching_behavior`, `answer_not_matching_behavior`
            and `behaviour`, as in the public model-written evals; an option of the caller.
        bbq: rows in BBQ's fields; an option of the caller.
        num_prompts: how many of the prompt bank are written on, `num_tokens` each.
    """

    embed: Embed | None = None
    persona: Sequence[Mapping[str, Any]] = ()
    bbq: Sequence[Mapping[str, Any]] = ()
    num_prompts: int = 48
    num_tokens: int = 24
    temperature: float = 0.7
    seed: int = 0

    @property
    def digest(self) -> str:
        """Returns what an observation may be kept under, together with its subject's digest."""
        return digest_json([
            [row["id"] for row in (*self.persona, *self.bbq)], self.embed is not None,
            self.num_prompts, self.num_tokens, self.temperature, self.seed,
        ])  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One measure's mean paired change between two revisions.

    Args:
        value: the mean; `low` and `high` its 95 % interval, two-sided.
        num_items: probe words, statements, questions, prompts or rows behind it.
        direction: which way is worse; `either` where a move is a move.
        error: standard error; `degrees` of Student's t behind the interval.
        p_value: where the measure has an exact test of its own.
        unit: of `value`.
    """

    measure: str
    value: float
    low: float
    high: float
    num_items: int
    direction: Direction
    error: float
    degrees: int
    unit: str = ""
    p_value: float | None = None

    @property
    def harm(self) -> float:
        """Returns the change, signed so that more is worse."""
        if self.direction == "either":
            return abs(self.value)
        return self.value if self.direction == "up" else -self.value

    def harm_interval(self, alpha: float) -> tuple[float, float]:
        """Returns the one-sided lower and upper bound of `harm`, each wrong in `alpha` of cases."""
        reach = float(stats.t.ppf(1 - alpha, max(self.degrees, 1))) * self.error
        return self.harm - reach, self.harm + reach


@dataclass(frozen=True, kw_only=True)
class Measure:
    """How one kind of drift is seen.

    Args:
        observe: what one arm shows, or None where the inputs lack what it needs.
        compare: the readings from an earlier observation to a later one; the earlier is None
            where its arm showed nothing.
    """

    observe: Callable[[Arm, DriftInputs], Any]
    compare: Callable[[Any, Any], tuple[Reading, ...]]


def paired_reading(
    measure: str,
    differences: Sequence[float] | np.ndarray,
    clusters: Sequence[str],
    *,
    direction: Direction,
    unit: str = "",
) -> Reading:
    """Returns the mean of paired differences with the clustered interval.

    Raises:
        GateBroken: fewer than two clusters, or a difference that is not finite.
    """
    values = [float(d) for d in differences]
    found = clustered_interval(values, clusters, confidence=CONFIDENCE)
    degrees = len(set(clusters)) - 1
    return Reading(
        measure=measure,
        value=found.mean,
        low=found.low,
        high=found.high,
        num_items=found.num_items,
        direction=direction,
        error=(found.high - found.mean) / float(stats.t.ppf(CONFIDENCE, degrees)),
        degrees=degrees,
        unit=unit,
    )


def reading_of_estimate(
    measure: str,
    value: float,
    error: float,
    *,
    num_items: int,
    direction: Direction,
    unit: str = "",
) -> Reading:
    """Returns a reading of a statistic that is no mean of items, its error from resampling."""
    if not math.isfinite(value) or not math.isfinite(error):
        raise GateBroken(f"{measure} is not finite", mend="check the candidate's weights")
    reach = float(stats.t.ppf(CONFIDENCE, max(num_items - 1, 1))) * error
    return Reading(
        measure=measure, value=value, low=value - reach, high=value + reach, num_items=num_items,
        direction=direction, error=error, degrees=max(num_items - 1, 1), unit=unit,
    )  # fmt: skip


def with_p_value(reading: Reading, p_value: float) -> Reading:
    """Returns the reading with the p-value of its own exact test."""
    return replace(reading, p_value=p_value)


def preferences(
    subject: Subject, prompts: Sequence[str], choices: Sequence[Sequence[str]]
) -> list[np.ndarray]:
    """Returns per prompt the log-probability of each choice, in nats per token, [num choices]."""
    pairs = [(p, c) for p, own in zip(prompts, choices, strict=True) for c in own]
    found = iter(subject.loglikelihood(pairs))
    return [
        np.array([one.logprob / one.num_tokens for one in (next(found) for _ in own)])
        for own in choices
    ]


@cache
def rows_of(name: str) -> tuple[dict[str, Any], ...]:
    """Returns the rows of one of our own data files, such as `drift_words.jsonl`."""
    text = (resources.files("cambium.evals") / "data" / name).read_text(encoding="utf-8")
    return tuple(json.loads(line) for line in text.splitlines())

"""Filters between what a model writes and what is scored; names and meaning are the harness's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cambium.evals.errors import TaskInvalid
from cambium.evals.tasks.task import Step
from cambium.evals.tasks.templates import findall

Answers = list[Any]


def _regex(
    answers: Answers,
    regex_pattern: str = r"#### (\-?[0-9\.\,]+)",
    group_select: int = 0,
    fallback: str = "[invalid]",
) -> Answers:
    def extracted(answer: str) -> str:
        found = findall(regex_pattern, answer)
        if not found or not -len(found) <= group_select < len(found):
            return fallback
        match = found[group_select]
        if isinstance(match, tuple):
            match = next((part for part in match if part), fallback)
        return match.strip()

    return [extracted(answer) for answer in answers]


def _map(
    answers: Answers, mapping_dict: Mapping[Any, Any] | None = None, default_value: Any = None
) -> Answers:
    return [(mapping_dict or {}).get(answer, default_value) for answer in answers]


def _take_first_k(answers: Answers, k: int = 1) -> Answers:
    if len(answers) < k:
        raise TaskInvalid(f"take_first_k asks for {k} answers of {len(answers)}",
                          mend="raise repeats")  # fmt: skip
    return answers[:k]


FILTERS: dict[str, Callable[..., Answers]] = {
    "regex": _regex,
    "map": _map,
    "take_first": lambda answers: answers[:1],
    "take_first_k": _take_first_k,
    "majority_vote": lambda answers: [Counter(answers).most_common(1)[0][0]],
    "remove_whitespace": lambda answers: [answer.strip() for answer in answers],
    "lowercase": lambda answers: [answer.lower() for answer in answers],
    "uppercase": lambda answers: [answer.upper() for answer in answers],
}
OPTIONS: dict[str, frozenset[str]] = {
    "regex": frozenset({"regex_pattern", "group_select", "fallback"}),
    "map": frozenset({"mapping_dict", "default_value"}),
    "take_first_k": frozenset({"k"}),
}


def filtered(steps: Sequence[Step], answers: Sequence[str]) -> str:
    """Returns the one answer that a filter makes of a document's answers.

    Raises:
        TaskInvalid: more than one is left, or a pattern cannot be used.
    """
    left: Answers = list(answers)
    for step in steps:
        try:
            left = FILTERS[step.name](left, **step.options)
        except (TypeError, AttributeError) as error:
            raise TaskInvalid(
                f"the filter {step.name} cannot be used here: {error}",
                mend="mend its options or its place in the list",
            ) from error
    if len(left) != 1:
        raise TaskInvalid(f"a filter leaves {len(left)} answers", mend="end it with take_first")
    return "" if left[0] is None else str(left[0])

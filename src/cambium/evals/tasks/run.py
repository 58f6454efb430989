"""A task run on a subject: asked in batches, kept as it goes, scored at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cambium.core.errors import ModelError
from cambium.evals.subject import Generation, Subject
from cambium.evals.tasks.answer_cache import Answer, AnswerCache, answer_key
from cambium.evals.tasks.filters import filtered
from cambium.evals.tasks.metrics import Figure, Value, figure
from cambium.evals.tasks.prompts import Item, Request, read_items
from cambium.evals.tasks.scorers import scorer_of
from cambium.evals.tasks.task import OutputType, Task

# What is lost by an interruption is at most one batch.
BATCH_REQUESTS = 512
BATCH_TEXTS = 64


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a task has come; `seconds_left` is None until there is something to go by."""

    task: str
    done: int
    total: int
    seconds_left: float | None


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One document of a run.

    Args:
        answers: one for each request, in their order.
        filtered: for each filter what was scored; empty where likelihoods were.
        values: for each (metric label, filter) the document's value.
    """

    item: Item
    answers: tuple[Answer, ...]
    filtered: Mapping[str, str]
    values: Mapping[tuple[str, str], Value]


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """A task's run on one subject.

    Args:
        started_s, finished_s: seconds since the epoch.
        num_cached: how many of the answers had been given before.
    """

    task: Task
    subject_name: str
    subject_digest: str
    samples: tuple[Sample, ...]
    figures: tuple[Figure, ...]
    started_s: float
    finished_s: float
    num_requests: int
    num_cached: int
    limit: int | None


def run_task(
    subject: Subject,
    task: Task,
    *,
    limit: int | None = None,
    cache: AnswerCache | None = None,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> TaskResult:
    """Returns what a task finds of a subject.

    It may be interrupted at any time: what was asked is kept in `cache`, and the next run goes on.

    Args:
        limit: take this many of the first documents only.

    Raises:
        DataError: the task or its data cannot be used.
        ModelError: the subject answered another number of requests than it was asked.
    """
    started_s = time.time()
    items = read_items(task, limit=limit)
    kept = cache if cache is not None else AnswerCache()
    requests = [request for item in items for request in item.requests]
    keys = [answer_key(subject.digest, request) for request in requests]
    missing = {key: request for key, request in zip(keys, requests, strict=True)
               if kept.get(key) is None}  # fmt: skip
    _ask(subject, task, missing, kept, progress)
    answers = iter(kept.get(key) for key in keys)
    samples = tuple(
        _sample(task, item, [_present(next(answers)) for _ in item.requests]) for item in items
    )
    return TaskResult(
        task=task,
        subject_name=subject.name,
        subject_digest=subject.digest,
        samples=samples,
        figures=_figures(task, samples),
        started_s=started_s,
        finished_s=time.time(),
        num_requests=len(requests),
        num_cached=sum(key not in missing for key in keys),
        limit=limit,
    )


def _ask(
    subject: Subject,
    task: Task,
    missing: Mapping[str, Request],
    cache: AnswerCache,
    progress: Callable[[Progress], None],
) -> None:
    size = BATCH_TEXTS if task.output_type is OutputType.GENERATE else BATCH_REQUESTS
    keys = list(missing)
    started = time.monotonic()
    progress(Progress(task=task.name, done=0, total=len(keys), seconds_left=None))
    for at in range(0, len(keys), size):
        chosen = keys[at : at + size]
        answers = _answers(subject, task.output_type, [missing[key] for key in chosen])
        if len(answers) != len(chosen):
            raise ModelError(f"{subject.name} gave {len(answers)} answers of {len(chosen)}",
                             mend="mend the subject")  # fmt: skip
        cache.put(dict(zip(chosen, answers, strict=True)))
        done = at + len(chosen)
        left = (time.monotonic() - started) / done * (len(keys) - done)
        progress(Progress(task=task.name, done=done, total=len(keys), seconds_left=left))


def _answers(subject: Subject, kind: OutputType, requests: Sequence[Any]) -> Sequence[Answer]:
    if kind is OutputType.ROLLING:
        return subject.loglikelihood_rolling(requests)
    if kind is OutputType.GENERATE:
        return subject.generate(requests)
    return subject.loglikelihood(requests)


def _present(answer: Answer | None) -> Answer:
    if answer is None:
        raise ModelError("an answer is missing", mend="run the task again")
    return answer


def _sample(task: Task, item: Item, answers: Sequence[Answer]) -> Sample:
    texts: dict[str, str] = {}
    values: dict[tuple[str, str], Value] = {}
    for name, steps in task.filters.items():
        scored: Any = answers
        if isinstance(item.requests[0], Generation):
            scored = texts[name] = filtered(steps, [str(answer) for answer in answers])
        for metric in task.metrics:
            score = scorer_of(metric.scorer.name, task.output_type).score
            values[metric.label, name] = score(item, scored, **metric.scorer.options)
    return Sample(item=item, answers=tuple(answers), filtered=texts, values=values)


def _figures(task: Task, samples: Sequence[Sample]) -> tuple[Figure, ...]:
    return tuple(
        figure(
            [sample.values[metric.label, name] for sample in samples],
            aggregation=metric.aggregation,
            metric=metric.label,
            filter=name,
            higher_is_better=metric.higher_is_better,
        )
        for name in task.filters
        for metric in task.metrics
    )

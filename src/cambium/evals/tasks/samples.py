"""Two runs of a task, document by document, for paired statistics; lines as the harness has."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cambium.evals.errors import GateBroken
from cambium.evals.subject import Generation, Likelihood
from cambium.evals.tasks.metrics import as_number
from cambium.evals.tasks.run import Sample, TaskResult


@dataclass(frozen=True, kw_only=True)
class PairedValues:
    """For one metric and filter, each shared document's value in both runs.

    Args:
        num_unpaired: documents that only one run holds.
    """

    metric: str
    filter: str
    before: tuple[float, ...]
    after: tuple[float, ...]
    num_unpaired: int

    @property
    def differences(self) -> list[float]:
        """Returns after minus before, document by document."""
        return [b - a for a, b in zip(self.before, self.after, strict=True)]


def doc_hash(sample: Sample) -> str:
    """Returns the digest of a document's row, as the harness computes it."""
    return _hash(json.dumps(sample.item.doc, indent=2, default=str, ensure_ascii=False))


def prompt_hash(sample: Sample) -> str:
    """Returns the digest of what the model read first, as the harness computes it."""
    return _hash(sample.item.prompt)


def target_hash(sample: Sample) -> str:
    """Returns the digest of the right answer, as the harness computes it."""
    return _hash(str(sample.item.target))


def paired(before: TaskResult, after: TaskResult, *, metric: str, filter: str) -> PairedValues:
    """Returns one metric's values of the documents that both runs hold.

    Rows that are alike are paired in their order. A ratio's document counts as its own ratio.

    Raises:
        GateBroken: a prompt differs, a run lacks the metric, or no document is in both.
    """
    mine, theirs = (_by_document(run, metric, filter) for run in (before, after))
    shared = [key for key in mine if key in theirs]
    for key in shared:
        if mine[key][0] != theirs[key][0]:
            raise GateBroken(
                f"document {key[0][:12]} was asked in different words in the two runs",
                mend="run both with the same task, examples and data",
            )
    if not shared:
        raise GateBroken("the two runs share no document", mend="run both on the same data")
    return PairedValues(
        metric=metric,
        filter=filter,
        before=tuple(mine[key][1] for key in shared),
        after=tuple(theirs[key][1] for key in shared),
        num_unpaired=len(mine) + len(theirs) - 2 * len(shared),
    )


def lines(result: TaskResult) -> Iterator[dict[str, Any]]:
    """Yields a line for each document and filter, with the fields of the harness's sample files."""
    for sample in result.samples:
        item = sample.item
        for name in result.task.filters:
            answers = [_plain(answer) for answer in sample.answers]
            yield {
                "doc_id": item.number,
                "doc": dict(item.doc),
                "target": item.target,
                "arguments": [_asked(request) for request in item.requests],
                "resps": [[answer] for answer in answers],
                "filtered_resps": [sample.filtered[name]] if name in sample.filtered else answers,
                "filter": name,
                "metrics": [metric.label for metric in result.task.metrics],
                "doc_hash": doc_hash(sample),
                "prompt_hash": prompt_hash(sample),
                "target_hash": target_hash(sample),
                **{m.label: sample.values[m.label, name] for m in result.task.metrics},
            }


def _by_document(
    run: TaskResult, metric: str, filter: str
) -> dict[tuple[str, int], tuple[str, float]]:
    found: dict[tuple[str, int], tuple[str, float]] = {}
    seen: dict[str, int] = {}
    for sample in run.samples:
        if (metric, filter) not in sample.values:
            known = sorted({f"{m},{f}" for m, f in sample.values})
            raise GateBroken(f"the run has no {metric},{filter}", mend=f"use one of {known}")
        digest = doc_hash(sample)
        number = as_number(sample.values[metric, filter])
        found[digest, seen.get(digest, 0)] = (prompt_hash(sample), number)
        seen[digest] = seen.get(digest, 0) + 1
    return found


def _plain(answer: Likelihood | str) -> Any:
    return answer if isinstance(answer, str) else [answer.logprob, answer.is_greedy]


def _asked(request: Any) -> list[Any]:
    if isinstance(request, Generation):
        options = {"until": list(request.until), "max_gen_toks": request.max_tokens,
                   "temperature": request.temperature}  # fmt: skip
        return [request.prompt, options]
    return [request] if isinstance(request, str) else list(request)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

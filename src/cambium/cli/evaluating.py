"""`cambium eval`: tasks on a base, an adapter or a revision, and what the run could have seen."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cambium.cli.client import connect
from cambium.cli.failures import WRONG_CALL, CommandFailed
from cambium.cli.options import AsJson, State, taking
from cambium.cli.output import print_json, print_rows, progress

if TYPE_CHECKING:
    from cambium.evals.subject import Subject
    from cambium.evals.tasks.run import TaskResult
    from cambium.evals.tasks.task import Task

_COLUMNS = ("task", "metric", "value", "stderr", "n", "minimum_detectable_effect")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The options of `cambium eval`."""

    tasks: Annotated[
        list[str],
        typer.Argument(metavar="TASK...", help="Shipped names, task files, or texts."),
    ]
    adapter: Annotated[
        str | None, typer.Option("--adapter", help="base, stable, NAME or NAME@DIGEST.")
    ] = None
    revision: Annotated[int | None, typer.Option("--revision", min=0)] = None
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Take the first N documents only.")
    ] = None
    log: Annotated[
        Path | None, typer.Option("--log", help="Write Inspect logs into this folder.")
    ] = None
    state: State = None
    as_json: AsJson = False

    def subject(self) -> str:
        """Returns the name of what is evaluated; what is served now unless said otherwise."""
        if self.adapter is not None and self.revision is not None:
            line = "an adapter and a revision are two subjects: give one of them"
            raise CommandFailed(line, status=WRONG_CALL)
        if self.revision is not None:
            return f"revision/{self.revision}"
        return self.adapter or "stable"


@taking(Evaluation)
def evaluate(evaluation: Evaluation) -> None:
    """Run evaluation tasks: shipped ones by name, or lm-evaluation-harness files by path.

    Answers are kept by content, so an interrupted run goes on where it stopped.
    """
    from cambium.cli.subjects import open_subject
    from cambium.evals.tasks.shipped import find_task

    name = evaluation.subject()
    # Every task is read before any is run: a misspelt one should not cost an hour.
    tasks = [find_task(task) for task in evaluation.tasks]
    with connect(evaluation.state) as client:
        subject = open_subject(client, name)
        results = _run(subject, tasks, evaluation.limit)
    logs = [_logged(result, evaluation.log) for result in results]
    if evaluation.as_json:
        print_json({
            "subject": {"name": subject.name, "digest": subject.digest},
            "tasks": [_record(r, log) for r, log in zip(results, logs, strict=True)],
        })  # fmt: skip
        return
    rows = [row for result in results for row in _rows(result)]
    print_rows(rows, _COLUMNS, title=f"{subject.name} {subject.digest}")


def _run(subject: Subject, tasks: list[Task], limit: int | None) -> list[TaskResult]:
    from cambium.evals.tasks.answer_cache import AnswerCache
    from cambium.evals.tasks.run import Progress, run_task

    cache = AnswerCache.of_subject(_cache_folder(), subject.digest)
    results = []
    with progress(estimate=True) as shown:
        for task in tasks:
            bar = shown.add_task(task.name, total=None)

            def show(step: Progress, bar: Any = bar) -> None:
                shown.update(bar, completed=step.done, total=step.total)

            results.append(run_task(subject, task, limit=limit, cache=cache, progress=show))
    return results


def _cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "cambium" / "answers"


def _logged(result: TaskResult, folder: Path | None) -> str | None:
    from cambium.evals.tasks.inspect_log import write_inspect_log

    return None if folder is None else str(write_inspect_log(result, folder))


def _rows(result: TaskResult) -> list[dict[str, Any]]:
    return [
        {
            "task": result.task.name,
            "metric": one.metric if one.filter == "none" else f"{one.metric},{one.filter}",
            "value": one.value,
            "stderr": one.stderr,
            "n": one.num_docs,
            "minimum_detectable_effect": one.mde,
        }
        for one in result.figures
    ]


def _record(result: TaskResult, log: str | None) -> dict[str, Any]:
    return {
        "task": result.task.name,
        "task_digest": result.task.digest,
        "version": result.task.version,
        "limit": result.limit,
        "metrics": [asdict(one) for one in result.figures],
        "num_docs": len(result.samples),
        "num_requests": result.num_requests,
        "num_cached": result.num_cached,
        "seconds": result.finished_s - result.started_s,
        "log": log,
    }

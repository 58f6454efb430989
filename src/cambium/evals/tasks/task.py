"""The nouns of an evaluation task: what its file says, its documents, what a run found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from cambium.core.canonical import digest_json
from cambium.evals.errors import TaskInvalid
from cambium.evals.subject import Generation

Doc = Mapping[str, Any]


class OutputType(StrEnum):
    """What a task asks of a model; the names are lm-evaluation-harness's."""

    LOGLIKELIHOOD = "loglikelihood"
    MULTIPLE_CHOICE = "multiple_choice"
    ROLLING = "loglikelihood_rolling"
    GENERATE = "generate_until"


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a task's rows come from.

    Args:
        kind: `json`, `csv`, `parquet`, `text`, or a data set's name on a hub.
        name: the hub data set's configuration.
        files: for each split, the files that hold it; empty for a hub's data set.
        folder: where relative paths begin, beside `CAMBIUM_DATA`.
    """

    kind: str
    name: str | None = None
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    folder: Path


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """Gives every document rows of another split, such as an attack for each e-mail.

    Args:
        split: whose rows are given.
        name: the field under which a document finds its row.
        count: how many copies of each document are made, each with another row.
    """

    split: str
    name: str
    count: int = 1


@dataclass(frozen=True, kw_only=True)
class Fewshot:
    """The worked examples before a question; what is None is as in the task itself."""

    count: int = 0
    sampler: str = "default"
    split: str | None = None
    samples: tuple[Doc, ...] | None = None
    doc_to_text: Any = None
    doc_to_target: Any = None
    doc_to_choice: Any = None
    target_delimiter: str | None = None
    delimiter: str | None = None


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of a filter, or one metric: its name in the registry, and its options."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One figure of a task.

    Args:
        scorer: a name in `scorers.SCORERS`, with its options.
        label: what it is called in results; it says what a larger value means.
        aggregation: a name in `metrics.AGGREGATIONS`.
    """

    scorer: Step
    label: str
    aggregation: str
    higher_is_better: bool


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task as its file declares it; templates are Jinja text or names of fields.

    Args:
        where: keeps documents whose fields have one of the listed values.
        shuffle_choices: puts each document's choices into an order drawn from its content.
        filters: for each name the steps that a model's answers go through before scoring.
        content: the file's settings, merged with what it includes, for digest and logs.
    """

    name: str
    output_type: OutputType
    source: Source
    test_split: str | None = None
    validation_split: str | None = None
    training_split: str | None = None
    doc_to_text: Any = ""
    doc_to_target: Any = ""
    doc_to_choice: Any = None
    description: str = ""
    target_delimiter: str = " "
    fewshot_delimiter: str = "\n\n"
    fewshot: Fewshot = field(default_factory=Fewshot)
    generation: Generation | None = None
    repeats: int = 1
    filters: Mapping[str, tuple[Step, ...]] = field(
        default_factory=lambda: {"none": (Step(name="take_first"),)}
    )
    metrics: tuple[Metric, ...]
    where: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    pairing: Pairing | None = None
    shuffle_choices: bool = False
    version: str = "0"
    content: Mapping[str, Any] = field(default_factory=dict)

    @property
    def split(self) -> str:
        """Returns the split that is evaluated."""
        split = self.test_split or self.validation_split
        if split is None:
            raise TaskInvalid(f"{self.name} names no split to evaluate", mend="set test_split")
        return split

    @property
    def digest(self) -> str:
        """Of what the file declares, its name and place left aside."""
        return digest_json({k: v for k, v in self.content.items() if k != "task"})

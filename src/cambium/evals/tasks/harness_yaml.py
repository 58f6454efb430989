"""Task files as lm-evaluation-harness 0.4 writes them, without what would run code.

Beyond its keys, three of ours: `where`, `pair_with` and `shuffle_choices`, and in a metric `as`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cambium.evals.errors import TaskInvalid
from cambium.evals.subject import Generation
from cambium.evals.tasks import templates
from cambium.evals.tasks.datasets import FILE_KINDS
from cambium.evals.tasks.filters import FILTERS, OPTIONS
from cambium.evals.tasks.metrics import AGGREGATIONS
from cambium.evals.tasks.scorers import scorer_of
from cambium.evals.tasks.task import (
    Fewshot,
    Metric,
    OutputType,
    Pairing,
    Source,
    Step,
    Task,
)
from cambium.evals.tasks.yaml_text import read_settings

MAX_GENERATED = 4096
_CODE = {
    "process_docs": "it is a Python function",
    "process_results": "it is a Python function",
    "custom_dataset": "it is a Python function",
    "class": "it names a Python class",
    "use_prompt": "it loads prompts from another package",
    "gen_prefix": "prefixes of answers are not read",
    "doc_to_image": "images are not read",
    "doc_to_audio": "sounds are not read",
    "group": "a group is not a task; give its tasks one by one",
}
# What says nothing about how a task is measured; the harness uses the last two on demand only.
_ASIDE = frozenset({"task_alias", "tag", "metadata", "should_decontaminate",
                    "doc_to_decontamination_query", "unsafe_code"})  # fmt: skip
_READ = frozenset(
    [
        "task",
        "dataset_path",
        "dataset_name",
        "dataset_kwargs",
        "test_split",
        "validation_split",
        "training_split",
        "fewshot_split",
        "fewshot_config",
        "num_fewshot",
        "output_type",
        "doc_to_text",
        "doc_to_target",
        "doc_to_choice",
        "description",
        "target_delimiter",
        "fewshot_delimiter",
        "generation_kwargs",
        "repeats",
        "filter_list",
        "metric_list",
        "where",
        "pair_with",
        "shuffle_choices",
    ]
)
_FEWSHOT = frozenset(
    [
        "sampler",
        "split",
        "samples",
        "doc_to_text",
        "doc_to_target",
        "doc_to_choice",
        "target_delimiter",
        "fewshot_delimiter",
    ]
)
_DEFAULT_METRICS = {
    OutputType.LOGLIKELIHOOD: ("perplexity", "acc"),
    OutputType.MULTIPLE_CHOICE: ("acc", "acc_norm"),
    OutputType.ROLLING: ("word_perplexity", "byte_perplexity", "bits_per_byte"),
    OutputType.GENERATE: ("exact_match",),
}


def read_task(path: Path) -> Task:
    """Returns the task that a file declares.

    Raises:
        TaskInvalid: it cannot be read, has a key that is not known, or would run code.
    """
    return task_of(read_settings(path), path.parent, default_name=path.stem)


def task_of(settings: Mapping[str, Any], folder: Path, *, default_name: str = "task") -> Task:
    """Returns the task that merged settings declare; relative paths begin at `folder`.

    Raises:
        TaskInvalid: as `read_task`.
    """
    _check_keys(settings)
    given = _Settings(settings)
    output_type = _output_type(given.text("output_type", "generate_until"))
    for key in ("doc_to_text", "doc_to_target", "doc_to_choice", "description"):
        if isinstance(settings.get(key), str):
            templates.check(settings[key])
    return Task(
        name=given.text("task", default_name),
        output_type=output_type,
        source=_source(given, folder),
        test_split=given.optional_text("test_split"),
        validation_split=given.optional_text("validation_split"),
        training_split=given.optional_text("training_split"),
        doc_to_text=given.template("doc_to_text", ""),
        doc_to_target=given.template("doc_to_target", ""),
        doc_to_choice=given.template("doc_to_choice", None),
        description=given.text("description", ""),
        target_delimiter=given.text("target_delimiter", " "),
        fewshot_delimiter=given.text("fewshot_delimiter", "\n\n"),
        fewshot=_fewshot(given),
        generation=_generation(given, output_type),
        repeats=given.number("repeats", 1, low=1, high=100),
        filters=_filters(given, output_type),
        metrics=_metrics(given, output_type),
        where=_where(given),
        pairing=_pairing(given),
        shuffle_choices=given.flag("shuffle_choices"),
        version=str(given.mapping("metadata").get("version", "0"))[:40],
        content=_plain(dict(settings)),
    )


class _Settings:
    """Values of one mapping, each refused where it is of another kind than asked for."""

    def __init__(self, values: Mapping[str, Any], name: str = "") -> None:
        self._values = values
        self._name = name

    def get(self, key: str) -> Any:
        return self._values.get(key)

    def text(self, key: str, default: str) -> str:
        value = self._values.get(key)
        return default if value is None else self._checked(key, value, str, "a text")

    def optional_text(self, key: str) -> str | None:
        return self.text(key, "") or None

    def flag(self, key: str) -> bool:
        value = self._values.get(key)
        return False if value is None else self._checked(key, value, bool, "true or false")

    def number(self, key: str, default: int, *, low: int, high: int) -> int:
        value = self._values.get(key)
        if value is None:
            return default
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        if not is_whole or not low <= value <= high:
            raise self._wrong(key, f"a whole number from {low} to {high}")
        return value

    def mapping(self, key: str) -> dict[str, Any]:
        value = self._values.get(key)
        return {} if value is None else self._checked(key, value, dict, "a mapping")

    def entries(self, key: str) -> list[dict[str, Any]] | None:
        value = self._values.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
            raise self._wrong(key, "a list of mappings")
        return value

    def template(self, key: str, default: Any) -> Any:
        """Returns a text, an index, a list of texts or a mapping of them."""
        value = self._values.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, str | int | list | dict):
            raise self._wrong(key, "a template, a field's name, an index or a list")
        return value

    def _checked(self, key: str, value: Any, kind: type, what: str) -> Any:
        if not isinstance(value, kind):
            raise self._wrong(key, what)
        return value

    def _wrong(self, key: str, what: str) -> TaskInvalid:
        name = f"{self._name}.{key}" if self._name else key
        return TaskInvalid(f"{name} is {str(self._values[key])[:60]!r}", mend=f"give {what}")


def _check_keys(settings: Mapping[str, Any]) -> None:
    for key, why in _CODE.items():
        if settings.get(key) is not None:
            raise TaskInvalid(f"the key {key!r} cannot be read: {why}",
                              mend="express it with templates, filters and `where`")  # fmt: skip
    if settings.get("unsafe_code"):
        raise TaskInvalid("the task asks to run code that the model writes",
                          mend="leave out unsafe_code")  # fmt: skip
    unknown = sorted(str(k)[:40] for k in set(settings) - _READ - _ASIDE - set(_CODE))
    if unknown:
        raise TaskInvalid(f"unknown keys {unknown}", mend=f"use {sorted(_READ)}")


def _output_type(name: str) -> OutputType:
    try:
        return OutputType(name)
    except ValueError as error:
        raise TaskInvalid(f"unknown output_type {name[:40]!r}",
                          mend=f"use one of {[str(o) for o in OutputType]}") from error  # fmt: skip


def _source(given: _Settings, folder: Path) -> Source:
    kind = given.text("dataset_path", "")
    if not kind:
        raise TaskInvalid("the task names no data", mend="set dataset_path")
    options = dict(given.mapping("dataset_kwargs"))
    options.pop("trust_remote_code", None)  # never trusted, whatever a file says
    files = options.pop("data_files", None)
    sampling = options.pop("sample_by", None)
    if options:
        raise TaskInvalid(f"unknown keys {sorted(options)} in dataset_kwargs",
                          mend="use data_files")  # fmt: skip
    if kind not in FILE_KINDS:
        return Source(kind=kind, name=given.optional_text("dataset_name"), folder=folder)
    by_split = files if isinstance(files, dict) else {"train": files}
    found: dict[str, tuple[str, ...]] = {}
    for split, names in by_split.items():
        listed = names if isinstance(names, list) else [names]
        if not listed or not all(isinstance(n, str) and n and "\0" not in n for n in listed):
            raise TaskInvalid(f"data_files of split {str(split)[:40]!r} are no file names",
                              mend="give a path or a list of paths")  # fmt: skip
        found[str(split)] = tuple(listed)
    name = sampling if kind == "text" else None
    return Source(kind=kind, name=name, files=found, folder=folder)


def _fewshot(given: _Settings) -> Fewshot:
    values = given.mapping("fewshot_config")
    if unknown := sorted(str(k) for k in set(values) - _FEWSHOT):
        raise TaskInvalid(
            f"unknown keys {unknown} in fewshot_config", mend=f"use {sorted(_FEWSHOT)}"
        )
    own = _Settings(values, "fewshot_config")
    sampler = own.text("sampler", "default")
    if sampler not in ("default", "first_n"):
        raise TaskInvalid(f"unknown sampler {sampler[:40]!r}", mend="use default or first_n")
    samples = own.entries("samples")
    return Fewshot(
        count=given.number("num_fewshot", 0, low=0, high=100),
        sampler=sampler,
        split=own.optional_text("split") or given.optional_text("fewshot_split"),
        samples=None if samples is None else tuple(samples),
        doc_to_text=own.template("doc_to_text", None),
        doc_to_target=own.template("doc_to_target", None),
        doc_to_choice=own.template("doc_to_choice", None),
        target_delimiter=own.get("target_delimiter"),
        delimiter=own.get("fewshot_delimiter"),
    )


def _generation(given: _Settings, output_type: OutputType) -> Generation | None:
    if output_type is not OutputType.GENERATE:
        return None
    values = dict(given.mapping("generation_kwargs"))
    own = _Settings(values, "generation_kwargs")
    until = values.pop("until", given.text("fewshot_delimiter", "\n\n"))
    until = until if isinstance(until, list) else [until]
    if not all(isinstance(term, str) for term in until):
        raise TaskInvalid("generation_kwargs.until holds what is no text", mend="give texts")
    temperature = values.get("temperature", 0.0)
    samples = own.flag("do_sample")
    names = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
    longest = next(
        (own.number(n, 256, low=1, high=MAX_GENERATED) for n in names if n in values), 256
    )
    if unknown := sorted(str(k) for k in set(values) - {*names, "temperature", "do_sample"}):
        raise TaskInvalid(f"unknown keys {unknown} in generation_kwargs",
                          mend="use until, do_sample, temperature and max_gen_toks")  # fmt: skip
    try:
        warmth = float(temperature)
    except (TypeError, ValueError, OverflowError):
        warmth = math.nan
    if not 0 <= warmth <= 100:
        raise TaskInvalid("generation_kwargs.temperature is out of range", mend="give 0 to 100")
    return Generation(prompt="", max_tokens=longest, until=tuple(until),
                      temperature=warmth if samples else 0.0)  # fmt: skip


def _filters(given: _Settings, output_type: OutputType) -> dict[str, tuple[Step, ...]]:
    entries = given.entries("filter_list")
    if entries is None:
        return {"none": (Step(name="take_first"),)}
    found: dict[str, tuple[Step, ...]] = {}
    for entry in entries:
        steps = _Settings(entry, "filter_list").entries("filter")
        name = _Settings(entry, "filter_list").text("name", "")
        if not name or not steps or set(entry) - {"name", "filter"}:
            raise TaskInvalid("an entry of filter_list is not a name with its filters",
                              mend="give name and filter")  # fmt: skip
        found[name] = tuple(_step(step, output_type) for step in steps)
    if not found:
        raise TaskInvalid("filter_list is empty", mend="leave it out")
    return found


def _step(step: Mapping[str, Any], output_type: OutputType) -> Step:
    name = str(step.get("function"))[:40]
    options = {str(k): v for k, v in step.items() if k != "function"}
    if name not in FILTERS:
        raise TaskInvalid(f"unknown filter {name!r}", mend=f"use one of {sorted(FILTERS)}")
    if unknown := sorted(set(options) - OPTIONS.get(name, frozenset())):
        raise TaskInvalid(f"unknown options {unknown} of filter {name}",
                          mend=f"use {sorted(OPTIONS.get(name, ()))}")  # fmt: skip
    if output_type is not OutputType.GENERATE and name != "take_first":
        raise TaskInvalid(f"the filter {name} is for texts, and {output_type} gives none",
                          mend="leave out filter_list")  # fmt: skip
    return Step(name=name, options=options)


def _metrics(given: _Settings, output_type: OutputType) -> tuple[Metric, ...]:
    entries = given.entries("metric_list")
    if entries is None:
        entries = [{"metric": name} for name in _DEFAULT_METRICS[output_type]]
    metrics = tuple(_metric(entry, output_type) for entry in entries)
    labels = [m.label for m in metrics]
    if not metrics or len(set(labels)) != len(labels):
        raise TaskInvalid("metric_list is empty or names a metric twice",
                          mend="give each its own `as`")  # fmt: skip
    return metrics


def _metric(entry: Mapping[str, Any], output_type: OutputType) -> Metric:
    own = _Settings(entry, "metric_list")
    name = own.text("metric", "")
    scorer = scorer_of(name, output_type)
    aggregation = own.text("aggregation", scorer.aggregation)
    if aggregation not in AGGREGATIONS:
        raise TaskInvalid(f"unknown aggregation {aggregation[:40]!r}",
                          mend=f"use one of {sorted(AGGREGATIONS)}")  # fmt: skip
    if (aggregation == "mean" or aggregation == "perplexity") != (
        scorer.aggregation in ("mean", "perplexity")
    ):
        raise TaskInvalid(f"{name} cannot be aggregated by {aggregation}",
                          mend=f"use {scorer.aggregation}")  # fmt: skip
    reserved = {"metric", "aggregation", "higher_is_better", "as"}
    options = {str(k): v for k, v in entry.items() if k not in reserved}
    if unknown := sorted(set(options) - scorer.options):
        raise TaskInvalid(f"unknown options {unknown} of metric {name}",
                          mend=f"use {sorted(scorer.options)}")  # fmt: skip
    higher = entry.get("higher_is_better")
    return Metric(
        scorer=Step(name=name, options=options),
        label=own.text("as", name),
        aggregation=aggregation,
        higher_is_better=scorer.higher_is_better
        if higher is None
        else own.flag("higher_is_better"),
    )


def _where(given: _Settings) -> dict[str, tuple[Any, ...]]:
    return {str(k): tuple(v) if isinstance(v, list) else (v,)
            for k, v in given.mapping("where").items()}  # fmt: skip


def _pairing(given: _Settings) -> Pairing | None:
    values = given.mapping("pair_with")
    if not values:
        return None
    own = _Settings(values, "pair_with")
    split, name = own.text("split", ""), own.text("as", "")
    if not split or not name or set(values) - {"split", "as", "count"}:
        raise TaskInvalid("pair_with is not a split, a name and a count",
                          mend="give split, as and count")  # fmt: skip
    return Pairing(split=split, name=name, count=own.number("count", 1, low=1, high=1000))


def _plain(value: Any) -> Any:
    """Returns settings as JSON holds them; YAML also knows dates and keys that are no texts."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | bool | None) else str(value)

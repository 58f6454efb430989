"""Rows of benchmark `gates`: our tasks beside lm-evaluation-harness on the same model.

Five tasks over texts that everyone has (Python's language reference), all four output types, the
bundled base in fp32 in one process. The harness's model is `HFLM` with batches of 16.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cambium.bench.report import Row, interleaved
from cambium.evals.local_subject import LocalSubject
from cambium.evals.subject import Likelihood
from cambium.evals.tasks.harness_yaml import task_of
from cambium.evals.tasks.run import TaskResult, run_task
from cambium.models.base import BaseModel, load_base

ROUNDS = 5
NUM_DOCS = 24
BATCH = 16
PEER = "lm-eval 0.4 HFLM"
_MEAN = {"aggregation": "mean", "higher_is_better": True}


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """The largest differences between two runs of one task, and how many texts differ.

    Args:
        metric: relative where the harness's value is above 1, as perplexities are.
        logprob: of a request, in nats, relative where it is above 1 nat.
    """

    metric: float
    logprob: float
    num_texts: int
    num_docs: int


def rows(say: Callable[[str], None]) -> list[Row]:
    """Returns throughput beside the harness, and how far its numbers are from ours."""
    base = load_base()
    subject = LocalSubject(base, name="base", digest=base.digest)
    with tempfile.TemporaryDirectory() as folder:
        settings = write_tasks(Path(folder), NUM_DOCS)
        tasks = {name: task_of(own, Path(folder)) for name, own in settings.items()}
        harness = Harness(base, settings, Path(folder))
        say(f"{len(tasks)} tasks of {NUM_DOCS} documents, beside {PEER}: agreement")
        found = {name: agreement(run_task(subject, task), harness.run(name))
                 for name, task in tasks.items()}  # fmt: skip
        figures = [_difference_row(found), _logprob_row(found), _texts_row(found)]
        seconds: dict[str, dict[str, float]] = {}
        for name, task in tasks.items():
            say(f"{name}: {ROUNDS} rounds each")
            seconds[name] = interleaved(
                {
                    "cambium": lambda task=task: _seconds(lambda: run_task(subject, task)),
                    "harness": lambda name=name: _seconds(lambda: harness.run(name)),
                },
                ROUNDS,
            )
    return [_throughput_row("gates.lm_eval.throughput", seconds), *figures, *(
        _throughput_row(f"gates.lm_eval.throughput.{name}", {name: own})
        for name, own in seconds.items()
    )]  # fmt: skip


class Harness:
    """lm-evaluation-harness on the very weights and tokenizer of a base, without a network."""

    def __init__(
        self, base: BaseModel, settings: Mapping[str, Mapping[str, Any]], folder: Path
    ) -> None:
        os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        os.environ["HF_DATASETS_CACHE"] = str(folder / "cache")
        import datasets
        import lm_eval.api.model as bars_of_tokens
        import lm_eval.api.task as bars_of_contexts
        import lm_eval.models.huggingface as bars_of_requests
        from lm_eval.api.task import ConfigurableTask
        from lm_eval.models.huggingface import HFLM

        # Bars on standard error are not what is measured, nor what a reader wants to see.
        datasets.disable_progress_bars()
        for module in (bars_of_tokens, bars_of_contexts, bars_of_requests):
            setattr(module, "tqdm", _bar)  # noqa: B010 - not declared by the module
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        make: Any = HFLM
        self._model = make(
            pretrained=base.model, tokenizer=base.tokenizer, backend="causal", device="cpu",
            batch_size=BATCH,
        )  # fmt: skip
        self._tasks = {}
        for name, own in settings.items():
            config = copy.deepcopy(dict(own))
            files = config["dataset_kwargs"]["data_files"]
            config["dataset_kwargs"] = {
                "data_files": {split: str(folder / file) for split, file in files.items()},
                "cache_dir": str(folder / "cache"),
            }
            self._tasks[name] = ConfigurableTask(config=config)

    def run(self, name: str) -> dict[str, Any]:
        """Returns `results` and `samples` as the harness's evaluator gives them."""
        from lm_eval.evaluator import evaluate

        task = self._tasks[name]
        task.set_fewshot_seed(1234)
        found: Any = evaluate(self._model, {name: task}, bootstrap_iters=0, log_samples=True)
        return found


def agreement(ours: TaskResult, theirs: Mapping[str, Any]) -> Agreement:
    """Returns how far two runs of a task are apart.

    Raises:
        ValueError: documents, prompts or targets are not the same.
    """
    from cambium.evals.tasks.samples import doc_hash, prompt_hash, target_hash

    name = ours.task.name
    metric = max(
        _apart(one.value, float(theirs["results"][name][f"{one.metric},{one.filter}"]))
        for one in ours.figures
    )
    first = next(iter(ours.task.filters))
    logged = {s["doc_id"]: s for s in theirs["samples"][name] if s["filter"] == first}
    logprob, num_texts = 0.0, 0
    for sample in ours.samples:
        other = logged[sample.item.number]
        hashes = (doc_hash(sample), prompt_hash(sample), target_hash(sample))
        if hashes != (other["doc_hash"], other["prompt_hash"], other["target_hash"]):
            raise ValueError(f"document {sample.item.number} of {name} is asked differently")
        for mine, (answer, *_) in zip(sample.answers, other["resps"], strict=True):
            if isinstance(mine, Likelihood):
                value = answer[0] if isinstance(answer, tuple | list) else answer
                logprob = max(logprob, _apart(mine.logprob, float(value)))
            else:
                num_texts += mine != answer
    return Agreement(
        metric=metric, logprob=logprob, num_texts=num_texts, num_docs=len(ours.samples)
    )


def _apart(ours: float, theirs: float) -> float:
    return abs(ours - theirs) / max(1.0, abs(theirs))


def write_tasks(folder: Path, num_docs: int) -> dict[str, dict[str, Any]]:
    """Writes data for five tasks into a folder and returns the tasks' settings.

    Python's language reference, sentence by sentence: choose the next sentence, the word that was
    left out, the end of a sentence; go on; predict a whole topic.
    """
    from pydoc_data.topics import topics

    texts = [" ".join(topics[name].split()) for name in sorted(topics)]
    texts = [text for text in texts if len(text) > 900][: num_docs + 8]
    documents = [_document(text, texts[k - 1]) for k, text in enumerate(texts)]
    _write(folder / "docs.jsonl", documents[:num_docs])
    _write(folder / "examples.jsonl", documents[num_docs:])
    shared: dict[str, Any] = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "docs.jsonl", "train": "examples.jsonl"}},
        "test_split": "test",
        "training_split": "train",
    }
    return {name: {"task": name, **shared, **own} for name, own in _declared().items()}


def _declared() -> dict[str, dict[str, Any]]:
    choice = {"output_type": "multiple_choice", "doc_to_choice": "choices",
              "doc_to_target": "answer"}  # fmt: skip
    return {
        "letters": {
            **choice, "num_fewshot": 3, "fewshot_split": "train",
            "fewshot_config": {"sampler": "first_n"},
            "description": "Which sentence comes next?\n\n",
            "doc_to_text": "{{before}}\nA. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\n"
                           "D. {{choices[3]}}\nAnswer:",
            "doc_to_choice": ["A", "B", "C", "D"],
            "metric_list": [{"metric": "acc", **_MEAN}],
        },
        "sentences": {
            **choice, "num_fewshot": 2, "doc_to_text": "Text: {{before}}\nNext:",
            "metric_list": [{"metric": "acc", **_MEAN}, {"metric": "acc_norm", **_MEAN}],
        },
        "ends": {
            "output_type": "loglikelihood", "doc_to_text": "{{before}} {{opening}}",
            "doc_to_target": "{{' ' + ending}}",
            "metric_list": [
                {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
                {"metric": "acc", **_MEAN},
            ],
        },
        "writing": {
            "output_type": "generate_until",
            "num_fewshot": 1, "doc_to_text": "Text: {{before}}\nNext:",
            "doc_to_target": "{{choices[answer]}}",
            "generation_kwargs": {"until": ["\n", "Text:"], "do_sample": False, "max_gen_toks": 32},
            "filter_list": [
                {"name": "first_word", "filter": [
                    {"function": "regex", "regex_pattern": r"(\w+)"}, {"function": "take_first"}]},
                {"name": "whole", "filter": [
                    {"function": "remove_whitespace"}, {"function": "take_first"}]},
            ],
            "metric_list": [{"metric": "exact_match", "ignore_case": True, **_MEAN}],
        },
        "topics": {
            "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "text",
            "metric_list": [
                {"metric": "word_perplexity", "aggregation": "weighted_perplexity",
                 "higher_is_better": False},
                {"metric": "byte_perplexity", "aggregation": "weighted_perplexity",
                 "higher_is_better": False},
                {"metric": "bits_per_byte", "aggregation": "bits_per_byte",
                 "higher_is_better": False},
            ],
        },
    }  # fmt: skip


def _document(text: str, other: str) -> dict[str, Any]:
    sentences = [s for s in re.split(r"(?<=[.:]) ", text) if 20 < len(s) < 200]
    strange = [s for s in re.split(r"(?<=[.:]) ", other) if 20 < len(s) < 200]
    first, second = (sentences * 2)[:2]
    at = len(first) % 4
    choices = (strange * 3)[:3]
    words = second.split()
    return {
        "before": first, "choices": [*choices[:at], second, *choices[at:]], "answer": at,
        "opening": " ".join(words[:-1]), "ending": words[-1], "text": text[:3000],
    }  # fmt: skip


def _write(path: Path, documents: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(d) + "\n" for d in documents), encoding="utf-8")


def _bar(*args: Any, **kwargs: Any) -> Any:
    return tqdm(*args, **{**kwargs, "disable": True})


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _throughput_row(metric: str, seconds: Mapping[str, Mapping[str, float]]) -> Row:
    docs = NUM_DOCS * len(seconds)
    ours = docs / sum(own["cambium"] for own in seconds.values())
    peer = docs / sum(own["harness"] for own in seconds.values())
    setting = f"{', '.join(seconds)}; {NUM_DOCS} documents each, fp32, batches of {BATCH}"
    return Row(metric=metric, unit="documents/s", value=ours, peer=PEER, peer_value=peer,
               ratio=ours / peer, setting=setting)  # fmt: skip


def _difference_row(found: Mapping[str, Agreement]) -> Row:
    return Row(metric="gates.lm_eval.max_difference", unit="of any metric, relative above 1",
               value=max(one.metric for one in found.values()), peer=PEER,
               setting=", ".join(found))  # fmt: skip


def _logprob_row(found: Mapping[str, Agreement]) -> Row:
    return Row(metric="gates.lm_eval.max_logprob_difference", unit="nats, relative above 1",
               value=max(one.logprob for one in found.values()), peer=PEER,
               setting=", ".join(found))  # fmt: skip


def _texts_row(found: Mapping[str, Agreement]) -> Row:
    return Row(
        metric="gates.lm_eval.texts_different",
        unit="texts",
        value=sum(one.num_texts for one in found.values()),
        peer=PEER,
        tried=sum(one.num_docs for one in found.values()),
        setting=", ".join(found),
    )

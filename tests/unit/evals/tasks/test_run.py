from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cambium.core.errors import DataError, ModelError
from cambium.evals.errors import GateBroken, TaskInvalid
from cambium.evals.subject import Generation, Likelihood
from cambium.evals.tasks import run as running
from cambium.evals.tasks.answer_cache import AnswerCache, answer_key
from cambium.evals.tasks.filters import filtered
from cambium.evals.tasks.harness_yaml import task_of
from cambium.evals.tasks.inspect_log import write_inspect_log
from cambium.evals.tasks.metrics import figure
from cambium.evals.tasks.run import run_task
from cambium.evals.tasks.samples import lines, paired
from cambium.evals.tasks.task import Step, Task


class Lengths:
    """Finds short continuations likelier, and writes a prompt's last word; counts what is asked."""

    def __init__(self, name: str = "lengths", bias: float = 0.0) -> None:
        self.name = name
        self.digest = f"sha256:{name}"
        self.bias = bias
        self.asked = 0

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood]:
        self.asked += len(pairs)
        return [Likelihood(logprob=-len(text) - self.bias * ("b" in text), num_tokens=1,
                           is_greedy=len(text) < 3) for _, text in pairs]  # fmt: skip

    def loglikelihood_rolling(self, texts: Sequence[str]) -> list[Likelihood]:
        self.asked += len(texts)
        return [Likelihood(logprob=-float(len(t)), num_tokens=len(t), is_greedy=False)
                for t in texts]  # fmt: skip

    def generate(self, requests: Sequence[Generation]) -> list[str]:
        self.asked += len(requests)
        return [f"so #### {request.prompt.split()[-1]}." for request in requests]


def task(folder: Path, rows: list[dict[str, Any]], **settings: Any) -> Task:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    declared = {"task": "t", "dataset_path": "json", "test_split": "test",
                "dataset_kwargs": {"data_files": {"test": "rows.jsonl"}}}  # fmt: skip
    return task_of(declared | settings, folder)


def choices(folder: Path, count: int = 8) -> Task:
    rows = [{"q": f"q{i}", "c": ["bbb", "a" * (1 + i % 5)], "y": 1} for i in range(count)]
    return task(folder, rows, output_type="multiple_choice", doc_to_text="{{q}}",
                doc_to_choice="c", doc_to_target="y")  # fmt: skip


def test_choices_are_scored_by_their_likelihood(tmp_path: Path) -> None:
    result = run_task(Lengths(), choices(tmp_path))
    acc, norm = result.figures
    assert (acc.metric, acc.value, acc.num_docs) == ("acc", 0.5, 8)
    assert norm.value == 0.25
    assert acc.stderr == pytest.approx(math.sqrt(0.25 * 8 / 7 / 8))
    assert acc.mde == pytest.approx(2.8016 * acc.stderr, rel=1e-3)


def test_texts_are_filtered_and_matched(tmp_path: Path) -> None:
    rows = [{"q": f"what is {i}", "y": str(i if i else 9)} for i in range(4)]
    one = task(
        tmp_path, rows, doc_to_text="{{q}}", doc_to_target="{{y}}",
        filter_list=[
            {"name": "number", "filter": [{"function": "regex", "regex_pattern": r"#### (\d+)"},
                                          {"function": "take_first"}]},
            {"name": "whole", "filter": [{"function": "take_first"}]},
        ],
        metric_list=[{"metric": "exact_match"}],
    )  # fmt: skip
    number, whole = run_task(Lengths(), one).figures
    assert (number.filter, number.value) == ("number", 0.75)
    assert (whole.filter, whole.value) == ("whole", 0.0)


def test_a_rolling_text_is_weighed_by_its_bytes(tmp_path: Path) -> None:
    one = task(tmp_path, [{"text": "ab cd"}, {"text": "é"}], output_type="loglikelihood_rolling",
               doc_to_target="text")  # fmt: skip
    found = {f.metric: f.value for f in run_task(Lengths(), one).figures}
    assert found["word_perplexity"] == pytest.approx(math.exp(6 / 3))
    assert found["byte_perplexity"] == pytest.approx(math.exp(6 / 7))
    assert found["bits_per_byte"] == pytest.approx(6 / 7 / math.log(2))


def test_an_interrupted_run_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "BATCH_REQUESTS", 4)
    cache, subject, asked = AnswerCache.of_subject(tmp_path / "c", "d"), Lengths(), []

    def stop(step: running.Progress) -> None:
        asked.append((step.done, step.total))
        if step.done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_task(subject, choices(tmp_path), cache=cache, progress=stop)
    assert asked == [(0, 16), (4, 16), (8, 16)]
    again = run_task(subject, choices(tmp_path), cache=AnswerCache.of_subject(tmp_path / "c", "d"))
    assert subject.asked == 16
    assert (again.num_requests, again.num_cached) == (16, 8)
    assert again.figures == run_task(Lengths(), choices(tmp_path)).figures


def test_another_subject_is_asked_anew(tmp_path: Path) -> None:
    cache, other = AnswerCache(), Lengths("other", bias=-9)
    run_task(Lengths(), choices(tmp_path), cache=cache)
    assert run_task(other, choices(tmp_path), cache=cache).figures[0].value == 0.0
    assert other.asked == 16
    assert answer_key("a", "t") != answer_key("a", ("t", "")) != answer_key("b", ("t", ""))


@pytest.mark.parametrize("cut", [1, 10, 40])
def test_a_torn_last_line_is_asked_again(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    keys = [answer_key("s", f"text {i}") for i in range(3)]
    AnswerCache(path).put({key: f"answer {i}" for i, key in enumerate(keys)})
    path.write_bytes(path.read_bytes()[:-cut])
    torn = AnswerCache(path)
    assert [torn.get(key) for key in keys] == ["answer 0", "answer 1", None]
    torn.put({keys[2]: Likelihood(logprob=-1.5, num_tokens=2, is_greedy=True)})
    whole = AnswerCache(path)
    assert whole.get(keys[2]) == Likelihood(logprob=-1.5, num_tokens=2, is_greedy=True)
    assert whole.get(keys[0]) == "answer 0"


def test_a_ruined_cache_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("no json\n" * 5)
    with pytest.raises(DataError, match="no answer"):
        AnswerCache(path)


def test_a_subject_that_answers_too_little_is_an_error(tmp_path: Path) -> None:
    subject = Lengths()
    subject.loglikelihood = lambda pairs: []  # type: ignore[method-assign]
    with pytest.raises(ModelError, match="0 answers"):
        run_task(subject, choices(tmp_path))


def test_a_task_without_documents_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no rows"):
        run_task(Lengths(), task(tmp_path, [], output_type="loglikelihood_rolling"))


def test_two_runs_are_paired_document_by_document(tmp_path: Path) -> None:
    before = run_task(Lengths(), choices(tmp_path))
    after = run_task(Lengths("other", bias=-9), choices(tmp_path), limit=6)
    pairs = paired(before, after, metric="acc", filter="none")
    assert pairs.differences == [-1.0, -1.0, 0.0, 0.0, 0.0, -1.0]
    assert pairs.num_unpaired == 2
    assert paired(before, before, metric="acc", filter="none").differences == [0.0] * 8
    with pytest.raises(GateBroken, match="has no f1"):
        paired(before, after, metric="f1", filter="none")


def test_another_prompt_is_not_paired(tmp_path: Path) -> None:
    before = run_task(Lengths(), choices(tmp_path))
    other = task_of(choices(tmp_path).content | {"doc_to_text": "Q: {{q}}"}, tmp_path)
    with pytest.raises(GateBroken, match="different words"):
        paired(before, run_task(Lengths(), other), metric="acc", filter="none")


def test_equal_values_are_not_certainty() -> None:
    found = figure([1.0] * 30, aggregation="mean", metric="m", filter="none",
                   higher_is_better=True)  # fmt: skip
    assert (found.value, found.stderr, found.mde) == (1.0, 0.0, 0.1)
    for broken in ([], [math.nan]):
        with pytest.raises(GateBroken):
            figure(broken, aggregation="mean", metric="m", filter="none", higher_is_better=True)


def test_a_filter_that_leaves_several_answers_is_refused() -> None:
    assert filtered([Step(name="majority_vote")], ["a", "b", "b"]) == "b"
    with pytest.raises(TaskInvalid, match="leaves 2"):
        filtered([Step(name="lowercase")], ["A", "B"])


def test_the_log_has_inspects_files_and_all_samples(tmp_path: Path) -> None:
    result = run_task(Lengths(), choices(tmp_path))
    with zipfile.ZipFile(write_inspect_log(result, tmp_path / "logs")) as log:
        names = set(log.namelist())
        header = json.loads(log.read("header.json"))
        sample = json.loads(log.read("samples/2_epoch_1.json"))
    expected = {"header.json", "summaries.json", "reductions.json", "_journal/start.json",
                "_journal/summaries/1.json"}  # fmt: skip
    assert names == expected | {f"samples/{i}_epoch_1.json" for i in range(1, 9)}
    assert (header["version"], header["status"]) == (2, "success")
    assert header["results"]["scores"][0]["metrics"]["acc"]["value"] == 0.5
    assert sample["scores"]["acc,none"] == {"value": 1.0, "answer": "aa", "metadata": None}
    assert sample["metadata"]["doc_hash"] == list(lines(result))[1]["doc_hash"]

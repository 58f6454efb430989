from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from cambium.core.errors import DataError
from cambium.evals.errors import TaskInvalid
from cambium.evals.tasks.harness_yaml import read_task
from cambium.evals.tasks.prompts import read_items
from cambium.evals.tasks.shipped import FOLDER, SHIPPED, find_task

BASE: dict[str, Any] = {
    "task": "t",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "rows.jsonl"}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{q}}",
    "doc_to_choice": ["a", "b"],
    "doc_to_target": "answer",
}
ROWS = [{"q": f"Question {i}?", "answer": i % 2, "kind": "odd" if i % 2 else "even"}
        for i in range(6)]  # fmt: skip


def write(folder: Path, settings: Any, name: str = "t.yaml") -> Path:
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (folder / "rows.jsonl").write_text(lines, encoding="utf-8")
    text = settings if isinstance(settings, str) else yaml.safe_dump(settings)
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_a_task_reads_and_asks(tmp_path: Path) -> None:
    task = read_task(write(tmp_path, BASE))
    items = read_items(task, limit=3)
    assert [item.requests for item in items] == [
        ((f"Question {i}?", " a"), (f"Question {i}?", " b")) for i in range(3)
    ]
    assert [item.gold for item in items] == [(0,), (1,), (0,)]


def test_examples_stand_before_the_question_and_never_hold_it(tmp_path: Path) -> None:
    settings = BASE | {"num_fewshot": 2, "fewshot_split": "test", "description": "Read. ",
                       "fewshot_config": {"sampler": "first_n"}}  # fmt: skip
    items = read_items(read_task(write(tmp_path, settings)))
    assert items[2].prompt == "Read. Question 0? a\n\nQuestion 1? b\n\nQuestion 2?"
    assert items[0].prompt == "Read. Question 1? b\n\nQuestion 2? a\n\nQuestion 0?"


def test_included_settings_are_overridden(tmp_path: Path) -> None:
    write(tmp_path, BASE, "base.yaml")
    task = read_task(write(tmp_path, {"include": "base.yaml", "target_delimiter": "\n"}))
    assert read_items(task)[0].requests[0] == ("Question 0?", "\na")


def test_where_keeps_and_shuffling_moves_the_right_answer_along(tmp_path: Path) -> None:
    settings = BASE | {"where": {"kind": ["odd"]}, "shuffle_choices": True}
    items = read_items(read_task(write(tmp_path, settings)))
    assert [item.doc["kind"] for item in items] == ["odd"] * 3
    assert all(item.choices[item.gold[0]] == "b" for item in items)
    assert read_items(read_task(tmp_path / "t.yaml")) == items


def test_pairing_gives_every_document_its_rows(tmp_path: Path) -> None:
    settings = BASE | {"pair_with": {"split": "test", "as": "other", "count": 2},
                       "doc_to_text": "{{q}}{{other.q}}"}  # fmt: skip
    items = read_items(read_task(write(tmp_path, settings)))
    assert len(items) == 12
    assert items[3].prompt == "Question 1?Question 3?"


REFUSED = {
    "unknown keys": {"colour": "red"},
    "Python function": {"process_docs": "utils.f"},
    "run code that the model writes": {"unsafe_code": True},
    "unknown output_type": {"output_type": "guess"},
    "no metric": {"metric_list": [{"metric": "bleu"}]},
    "unknown options": {"metric_list": [{"metric": "acc", "colour": 1}]},
    "cannot be aggregated": {"metric_list": [{"metric": "acc", "aggregation": "bits_per_byte"}]},
    "names a metric twice": {"metric_list": [{"metric": "acc"}, {"metric": "acc"}]},
    "unknown filter": {"filter_list": [{"name": "x", "filter": [{"function": "exec"}]}]},
    "is for texts": {"filter_list": [{"name": "x", "filter": [{"function": "regex"}]}]},
    "num_fewshot": {"num_fewshot": -1},
    "unknown sampler": {"fewshot_config": {"sampler": "mine"}},
    "cannot be rendered": {"doc_to_text": "{% if %}"},
    "names no data": {"dataset_path": None},
    "no file names": {"dataset_kwargs": {"data_files": {"test": [3]}}},
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_is_not_offered_is_refused_with_its_reason(why: str, tmp_path: Path) -> None:
    with pytest.raises(TaskInvalid, match=why):
        read_task(write(tmp_path, BASE | REFUSED[why]))


HOSTILE = {
    "!function": "doc_to_text: !function utils.steal\n",
    "python tag": "doc_to_text: !!python/object/apply:os.system ['id']\n",
    "laughs": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi",
                                                                     strict=True)),
    "merges": "a: &a {x: 1}\n"
    + "".join(f"{b}: &{b} {{<<: [*{a}, *{a}, *{a}]}}\n" for a, b in zip("abcdefghijklm",
                                                                  "bcdefghijklmn", strict=True)),
    "itself": "a: &a [*a]\n",
    "deep": "a: " + "[" * 5000 + "]" * 5000,
    "long": "a: " + "x" * 300_000,
    "number": "a: " + "9" * 9000 + "\n",
    "list": "- a\n",
    "nothing": "",
    "bytes": "a: \x00",
    "key": "1: 2\n",
    "includes itself": "include: t.yaml\n",
    "climbs": "include: ../../../../etc/passwd\n",
    "absolute": "include: /etc/hostname\n",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_yaml_is_an_error_soon(name: str, tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(TaskInvalid):
        read_task(write(tmp_path, HOSTILE[name]))
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "name", ["../secret.jsonl", "/etc/passwd", "missing.jsonl", "rows.jsonl\0"]
)
def test_data_outside_of_the_tasks_folder_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret.jsonl").write_text('{"q": "x", "answer": 0}\n')
    inner = tmp_path / "inner"
    inner.mkdir()
    monkeypatch.setenv("CAMBIUM_DATA", str(inner))
    settings = BASE | {"dataset_kwargs": {"data_files": {"test": name}}}
    with pytest.raises(TaskInvalid):
        read_items(read_task(write(inner, settings)))


def test_a_thousand_mutations_read_or_are_refused(tmp_path: Path) -> None:
    """Fuzzing: whatever happens to a file, it is a task or a `DataError`."""
    draw = random.Random(5)
    originals = [path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.yaml"))]
    marks = ["!", "&a", "*a", "{", "}", "[", "]", ": ", "- ", "{{", "%}", "\t", "'", '"', "0", "\n"]
    read = refused = 0
    for _ in range(1000):
        text = list(draw.choice(originals))
        for _ in range(draw.randrange(1, 5)):
            at = draw.randrange(len(text))
            text[at : at + draw.randrange(3)] = draw.choice(marks)
        (tmp_path / "m.yaml").write_text("".join(text), encoding="utf-8")
        try:
            read_task(tmp_path / "m.yaml")
            read += 1
        except DataError:
            refused += 1
    assert read > 50
    assert refused > 100


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_every_shipped_task_has_documents(
    name: str, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAMBIUM_DATA", str(data_folder))
    task = find_task(name)
    assert task.name == name
    items = read_items(task)
    assert len(items) >= 35
    if items[0].choices:  # a constant answer must not be right by where the right one stands
        first = sum(item.gold[0] == 0 for item in items) / len(items)
        assert first < 0.95


def test_the_registry_lists_every_file() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(SHIPPED)


def test_a_text_is_a_task_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "story.txt").write_text("Once.\n\nTwice.\n")
    (item,) = read_items(find_task(str(tmp_path / "story.txt")))
    assert item.requests == ("Once.\n\nTwice.\n",)
    with pytest.raises(TaskInvalid, match="no task"):
        find_task("no such task")

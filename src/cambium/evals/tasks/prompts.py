"""From a task's rows to what a model is asked: contexts, choices, worked examples.

Texts are put together exactly as lm-evaluation-harness 0.4 does, so that its numbers hold.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cambium.evals.errors import TaskInvalid
from cambium.evals.subject import Generation
from cambium.evals.tasks.datasets import check_rows, read_rows
from cambium.evals.tasks.task import Doc, OutputType, Task
from cambium.evals.tasks.templates import literal, render

# The harness's default seed for its few-shot sampler; a document's examples depend on how many
# documents came before it.
FEWSHOT_SEED = 1234

Request = tuple[str, str] | str | Generation


@dataclass(frozen=True, kw_only=True)
class Item:
    """A document as it is asked.

    Args:
        number: its place among the task's documents, from 0.
        target: what `doc_to_target` gives; as in the harness a text, an index or a list.
        choices: the texts to choose from, without delimiter; empty for other output types.
        gold: which choices are right.
        order: where each choice stood in the data.
        requests: (context, continuation) pairs, a rolling text, or texts to be written.
    """

    number: int
    doc: Doc
    output_type: OutputType
    target: Any
    choices: tuple[str, ...] = ()
    gold: tuple[int, ...] = ()
    order: tuple[int, ...] = ()
    requests: tuple[Request, ...]

    @property
    def gold_texts(self) -> list[str]:
        """Returns the right answers of a text to be written."""
        if self.choices:
            return [self.choices[i] for i in self.gold]
        return [str(t) for t in self.target] if isinstance(self.target, list) else [
            str(self.target)
        ]  # fmt: skip

    @property
    def prompt(self) -> str:
        """Returns what the first request begins with: its context, prompt or text."""
        first = self.requests[0]
        if isinstance(first, Generation):
            return first.prompt
        return first if isinstance(first, str) else first[0]


def read_items(task: Task, *, limit: int | None = None) -> list[Item]:
    """Returns the first `limit` documents of a task, ready to be asked.

    Raises:
        DataError: the task has no documents.
        TaskInvalid: data and task do not fit.
    """
    docs = _documents(task)
    check_rows(docs, f"the task {task.name}")
    writer = _Writer(task, docs)
    return [writer.item(i, doc) for i, doc in enumerate(docs[:limit])]


def _documents(task: Task) -> list[dict[str, Any]]:
    docs = _kept(task, read_rows(task.source, task.split))
    if task.pairing is None:
        return docs
    others = read_rows(task.source, task.pairing.split)
    check_rows(others, f"the split {task.pairing.split}")
    count = task.pairing.count
    return [
        {**doc, task.pairing.name: others[(i * count + k) % len(others)]}
        for i, doc in enumerate(docs)
        for k in range(count)
    ]


def _kept(task: Task, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for name in task.where:
        if rows and name not in rows[0]:
            raise TaskInvalid(f"`where` names the field {name!r}, which rows do not have",
                              mend=f"use one of {sorted(rows[0])}")  # fmt: skip
    return [row for row in rows if all(row[k] in values for k, values in task.where.items())]


class _Writer:
    """Puts a task's texts together; keeps the few-shot sampler's state between documents."""

    def __init__(self, task: Task, docs: Sequence[Mapping[str, Any]]) -> None:
        self._task = task
        self._fields = frozenset(docs[0])
        self._random = random.Random(FEWSHOT_SEED)
        self._pool = self._examples() if task.fewshot.count else []

    def item(self, number: int, doc: Doc) -> Item:
        task = self._task
        context = self._context(doc)
        target = self._target(doc)
        choices = self._choices(doc) if task.doc_to_choice is not None else []
        text = self._text(doc)
        gold = self._gold(text if isinstance(text, int) else target, choices) if choices else ()
        order = list(range(len(choices)))
        if task.shuffle_choices:
            order = _shuffled(doc, len(choices))
            choices = [choices[i] for i in order]
            gold = tuple(sorted(order.index(i) for i in gold))
        return Item(
            number=number, doc=doc, output_type=task.output_type, target=target,
            choices=tuple(choices), gold=gold, order=tuple(order),
            requests=self._requests(context, text, target, choices),
        )  # fmt: skip

    def _requests(
        self, context: str, text: str | int, target: Any, choices: Sequence[str]
    ) -> tuple[Request, ...]:
        task = self._task
        if task.output_type is OutputType.LOGLIKELIHOOD:
            return ((context + _string(text, "doc_to_text"), _string(target, "doc_to_target")),)
        if task.output_type is OutputType.ROLLING:
            return (_string(target, "doc_to_target"),)
        if task.output_type is OutputType.MULTIPLE_CHOICE:
            delimiter = task.target_delimiter
            if not choices:
                raise TaskInvalid("a document has no choices", mend="mend doc_to_choice")
            if isinstance(text, int):
                # One question with several contexts: the choices stand before the same target.
                return tuple((context + c, f"{delimiter}{target}") for c in choices)
            return tuple((context + text, delimiter + c) for c in choices)
        if task.generation is None:
            raise TaskInvalid("the task says nothing of how to write", mend="set generation_kwargs")
        own, prompt = task.generation, context + _string(text, "doc_to_text")
        return tuple(
            Generation(prompt=prompt, max_tokens=own.max_tokens, until=own.until,
                       temperature=own.temperature, seed=own.seed + k)
            for k in range(task.repeats)
        )  # fmt: skip

    def _context(self, doc: Doc) -> str:
        """Returns description and worked examples, each with its delimiter."""
        task = self._task
        about = task.description
        parts = [str(doc[about]) if about in doc else render(about, doc)] if about else []
        shots = task.fewshot
        between = task.target_delimiter if shots.target_delimiter is None else (
            shots.target_delimiter)  # fmt: skip
        after = task.fewshot_delimiter if shots.delimiter is None else shots.delimiter
        for example in self._chosen(doc):
            text = self._text(example, shots.doc_to_text)
            answer = self._target(example, shots.doc_to_target)
            own = task.doc_to_choice if shots.doc_to_choice is None else shots.doc_to_choice
            choices = self._choices(example, own) if own is not None else None
            if isinstance(text, int):
                text, choices = (choices or [])[text], None
            if isinstance(answer, list):
                answer = answer[0]
            if choices and isinstance(answer, int):
                answer = choices[answer]
            _string(answer, "doc_to_target of an example")
            parts.append(f"{text}{between}{answer}{after}" if answer != "" else text)
        return "".join(parts)

    def _examples(self) -> list[Doc]:
        task, shots = self._task, self._task.fewshot
        if shots.split is None and shots.samples is not None:
            return list(shots.samples)
        split = shots.split or task.training_split or task.validation_split or task.split
        return [*_kept(task, read_rows(task.source, split))]

    def _chosen(self, doc: Doc) -> Sequence[Doc]:
        """Draws a document's examples, never itself; the order of draws is the harness's."""
        count = self._task.fewshot.count
        if not count:
            return []
        own = doc if self._task.fewshot.split == self._task.test_split else None
        others = [one for one in self._pool if one != own]
        if len(others) < count:
            raise TaskInvalid(f"{count} examples are asked for, {len(others)} are there",
                              mend="lower num_fewshot")  # fmt: skip
        if self._task.fewshot.sampler == "first_n":
            return others[:count]
        if own is None:
            return self._random.sample(self._pool, count)
        drawn = self._random.sample(self._pool, min(count + 1, len(self._pool)))
        kept = [one for one in drawn if one != own][:count]
        return kept if len(kept) == count else self._random.sample(others, count)

    def _text(self, doc: Doc, template: Any = None) -> str | int:
        source = self._task.doc_to_text if template is None else template
        found = self._resolved(doc, source)
        if not isinstance(found, str) or (isinstance(source, str) and source in self._fields):
            return found if isinstance(found, str | int) else str(found)
        return int(found) if found.isdigit() and self._task.doc_to_choice is not None else found

    def _target(self, doc: Doc, template: Any = None) -> Any:
        source = self._task.doc_to_target if template is None else template
        found = self._resolved(doc, source)
        if not isinstance(found, str) or (isinstance(source, str) and source in self._fields):
            return found
        if found.isdigit() and self._task.doc_to_choice is not None:
            return int(found)
        if found[:1] == "[" and found[-1:] == "]":
            try:
                return literal(found)
            except ValueError:
                return found
        return found

    def _choices(self, doc: Doc, template: Any = None) -> list[str]:
        found = self._resolved(doc, self._task.doc_to_choice if template is None else template)
        if isinstance(found, dict):
            found = list(found.values())
        if isinstance(found, str):
            try:
                found = literal(found)
            except ValueError:
                found = None
        if not isinstance(found, list) or not all(isinstance(c, str) for c in found):
            raise TaskInvalid("doc_to_choice gives no list of texts", mend="mend it or the data")
        return found

    def _resolved(self, doc: Doc, source: Any) -> Any:
        """Returns the field that `source` names, or what it renders to as a template."""
        if not isinstance(source, str):
            return source
        if source in self._fields:
            return doc.get(source)
        return render(source, doc)

    def _gold(self, label: Any, choices: Sequence[str]) -> tuple[int, ...]:
        found = []
        for one in label if isinstance(label, list) else [label]:
            if isinstance(one, str):
                one = choices.index(one) if one in choices else -1
            if not isinstance(one, int) or not 0 <= one < len(choices):
                raise TaskInvalid(f"the right answer {str(label)[:60]!r} is none of the choices",
                                  mend="mend doc_to_target or the data")  # fmt: skip
            found.append(int(one))
        return tuple(found)


def _shuffled(doc: Doc, count: int) -> list[int]:
    seed = hashlib.sha256(json.dumps(doc, sort_keys=True, default=str).encode()).digest()
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order


def _string(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise TaskInvalid(f"{what} gives {type(value).__name__}, not a text", mend="mend it")
    return value

"""Answers already given, by content: what is asked of which model, never a task's name."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from cambium.core.canonical import digest_json, is_digest
from cambium.core.errors import DataError
from cambium.evals.subject import Generation, Likelihood
from cambium.evals.tasks.prompts import Request

Answer = Likelihood | str


def answer_key(subject: str, request: Request) -> str:
    """Returns the digest of a subject's digest and what is asked of it."""
    if isinstance(request, Generation):
        asked: object = {"generate": {**asdict(request), "until": list(request.until)}}
    elif isinstance(request, str):
        asked = {"rolling": request}
    else:
        asked = {"context": request[0], "continuation": request[1]}
    return digest_json({"subject": subject, "asked": asked})


class AnswerCache:
    """One file of answers that only grows, a line each; without a path it is kept in memory.

    A line torn by a crash is the last one and is asked again. Several processes may append.

    Raises:
        DataError: another line than the last cannot be read.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._answers: dict[str, Answer] = {}
        self._is_torn = False
        if path is not None and path.exists():
            self._load(path)

    @classmethod
    def of_subject(cls, folder: Path, subject: str) -> AnswerCache:
        """Returns the cache of a subject's digest in a folder, which is made if need be."""
        folder.mkdir(parents=True, exist_ok=True)
        return cls(folder / f"{digest_json(subject).removeprefix('sha256:')[:32]}.jsonl")

    def get(self, key: str) -> Answer | None:
        """Returns the answer kept under this key."""
        return self._answers.get(key)

    def put(self, answers: Mapping[str, Answer]) -> None:
        """Keeps answers; when it returns they survive a crash."""
        self._answers |= answers
        if self._path is None or not answers:
            return
        lines = [json.dumps({"key": key, **_fields(answer)}) for key, answer in answers.items()]
        # A torn line is ended first, so that it stays the only one that cannot be read.
        text = ("\n" if self._is_torn else "") + "\n".join(lines) + "\n"
        with self._path.open("ab") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        self._is_torn = False

    def _load(self, path: Path) -> None:
        data = path.read_bytes()
        *lines, last = data.split(b"\n")
        self._is_torn = bool(last)
        torn = 0
        for number, line in enumerate(lines, 1):
            try:
                fields = json.loads(line)
                key, answer = fields.pop("key"), _answer(fields)
                if not is_digest(key):
                    raise ValueError("no digest")
                self._answers[key] = answer
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                # One line may have been torn earlier and ended later; it is no JSON.
                torn += 1
                if torn > 1 + len(lines) // 100:
                    raise DataError(
                        f"line {number} of {path.name} is no answer: {error}",
                        mend="delete the file; answers are asked again",
                    ) from error


def _fields(answer: Answer) -> dict[str, object]:
    return {"text": answer} if isinstance(answer, str) else asdict(answer)


def _answer(fields: dict[str, object]) -> Answer:
    if set(fields) == {"text"} and isinstance(fields["text"], str):
        return fields["text"]
    logprob, num_tokens = fields.pop("logprob"), fields.pop("num_tokens")
    is_greedy = fields.pop("is_greedy")
    if fields or not isinstance(logprob, float | int) or not isinstance(num_tokens, int):
        raise ValueError("no likelihood")
    return Likelihood(logprob=float(logprob), num_tokens=num_tokens, is_greedy=bool(is_greedy))

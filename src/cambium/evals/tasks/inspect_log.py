"""A task's result as a log of Inspect (`.eval`, a ZIP of JSON, EvalLog version 2).

`inspect view` and `inspect_ai.log.read_eval_log` read it; nothing of Inspect is needed to write it.
Values that are ratios stand in a score's metadata, their quotient in its value.
"""

from __future__ import annotations

import datetime
import io
import json
import math
import re
import zipfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cambium.core.canonical import digest_json
from cambium.evals.subject import Likelihood
from cambium.evals.tasks.metrics import as_number
from cambium.evals.tasks.run import Sample, TaskResult
from cambium.evals.tasks.samples import doc_hash, prompt_hash, target_hash

LOG_VERSION = 2


def write_inspect_log(result: TaskResult, folder: Path) -> Path:
    """Writes a result into a folder, which is made if need be, and returns the file.

    The file is there whole or not at all; its name holds time, task and the log's own id.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^A-Za-z0-9-]+", "-", result.task.name)[:60] or "task"
    moment = _time(result.started_s).replace(":", "-")
    path = folder / f"{moment}_{name}_{_id(result, 'run')}.eval"
    partial = path.with_suffix(".partial")
    partial.write_bytes(_zipped(result))
    partial.replace(path)
    return path


def _zipped(result: TaskResult) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:

        def put(name: str, value: object) -> None:
            archive.writestr(name, json.dumps(_finite(value), ensure_ascii=False))

        start = {"version": LOG_VERSION, "eval": _spec(result), "plan": _plan(result)}
        put("_journal/start.json", start)
        samples = list(_samples(result))
        for sample in samples:
            put(f"samples/{sample['id']}_epoch_1.json", sample)
        summaries = [_summary(sample) for sample in samples]
        put("_journal/summaries/1.json", summaries)
        put("summaries.json", summaries)
        put("reductions.json", _reductions(result, samples))
        put("header.json", {
            **start, "status": "success", "results": _results(result),
            "stats": {"started_at": _time(result.started_s),
                      "completed_at": _time(result.finished_s), "model_usage": {}},
        })  # fmt: skip
    return buffer.getvalue()


def _spec(result: TaskResult) -> dict[str, Any]:
    task = result.task
    return {
        "eval_id": _id(result, "eval"),
        "run_id": _id(result, "run"),
        "created": _time(result.started_s),
        "task": task.name,
        "task_id": digest_json(task.digest)[7:29],
        "task_version": task.version,
        "task_attribs": {},
        "task_args": {},
        "task_args_passed": {},
        "dataset": {
            "name": task.source.name or task.source.kind,
            "samples": len(result.samples),
            "sample_ids": [_sample_id(sample) for sample in result.samples],
            "shuffled": False,
        },
        "model": f"cambium/{result.subject_name}",
        "model_args": {"digest": result.subject_digest},
        "config": {"epochs": 1, **({"limit": result.limit} if result.limit else {})},
        "packages": {"cambium": version("cambium")},
        "metadata": {"task_digest": task.digest, "task_file": dict(task.content)},
    }


def _plan(result: TaskResult) -> dict[str, Any]:
    step = {"solver": str(result.task.output_type), "params": {}}
    return {"name": "plan", "steps": [step], "config": {}}


def _results(result: TaskResult) -> dict[str, Any]:
    scores = []
    for one in result.figures:
        metrics = {one.metric: one.value, "stderr": one.stderr, "mde": one.mde}
        scores.append({
            "name": f"{one.metric},{one.filter}",
            "scorer": one.metric,
            "scored_samples": one.num_docs,
            "unscored_samples": 0,
            "params": {},
            "metrics": {k: {"name": k, "value": v, "params": {}}
                        for k, v in metrics.items() if v is not None},
            "metadata": {"higher_is_better": one.higher_is_better, "filter": one.filter},
        })  # fmt: skip
    total = len(result.samples)
    return {"total_samples": total, "completed_samples": total, "scores": scores}


def _samples(result: TaskResult) -> Iterator[dict[str, Any]]:
    moment = _time(result.finished_s)
    for sample in result.samples:
        item = sample.item
        written = _written(sample)
        yield {
            "id": _sample_id(sample),
            "epoch": 1,
            "input": item.prompt,
            "choices": list(item.choices) or None,
            "target": _target(sample),
            "messages": [
                {"role": "user", "content": item.prompt},
                {"role": "assistant", "content": written},
            ],
            "output": {
                "model": f"cambium/{result.subject_name}",
                "choices": [{"message": {"role": "assistant", "content": written},
                             "stop_reason": "stop"}],
            },
            "scores": _scores(sample, written),
            "metadata": {
                "doc": dict(item.doc), "doc_hash": doc_hash(sample),
                "prompt_hash": prompt_hash(sample), "target_hash": target_hash(sample),
                "answers": [_plain(answer) for answer in sample.answers],
            },
            "store": {},
            "events": [],
            "model_usage": {},
            "attachments": {},
            "started_at": moment,
            "completed_at": moment,
        }  # fmt: skip


def _scores(sample: Sample, written: str) -> dict[str, Any]:
    found = {}
    for (metric, name), value in sample.values.items():
        ratio = {"sum": value[0], "weight": value[1]} if isinstance(value, tuple) else None
        found[f"{metric},{name}"] = {
            "value": as_number(value),
            "answer": sample.filtered.get(name, written),
            "metadata": ratio,
        }
    return found


def _reductions(result: TaskResult, samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "scorer": f"{one.metric},{one.filter}",
            "samples": [
                {"sample_id": s["id"], **s["scores"][f"{one.metric},{one.filter}"]} for s in samples
            ],
        }
        for one in result.figures
    ]


def _summary(sample: dict[str, Any]) -> dict[str, Any]:
    kept = ("id", "epoch", "target", "started_at", "completed_at", "model_usage")
    return {
        **{key: sample[key] for key in kept},
        "input": sample["input"][:1024],
        "scores": {k: {"value": v["value"]} for k, v in sample["scores"].items()},
        "metadata": {"doc_hash": sample["metadata"]["doc_hash"]},
        "completed": True,
        "message_count": len(sample["messages"]),
    }


def _written(sample: Sample) -> str:
    """Returns what the model wrote, or the choice that it finds likeliest."""
    first = sample.answers[0]
    if isinstance(first, str):
        return first
    scores = [a.logprob for a in sample.answers if isinstance(a, Likelihood)]
    if len(scores) == len(sample.item.choices):
        return sample.item.choices[scores.index(max(scores))]
    return f"log-probability {first.logprob:.4f} over {first.num_tokens} tokens"


def _target(sample: Sample) -> str | list[str]:
    item = sample.item
    if item.choices:
        texts = [item.choices[i] for i in item.gold]
        return texts[0] if len(texts) == 1 else texts
    return [str(t) for t in item.target] if isinstance(item.target, list) else str(item.target)


def _sample_id(sample: Sample) -> int:
    return sample.item.number + 1


def _plain(answer: Likelihood | str) -> Any:
    if isinstance(answer, str):
        return answer
    return {"logprob": answer.logprob, "num_tokens": answer.num_tokens,
            "is_greedy": answer.is_greedy}  # fmt: skip


def _id(result: TaskResult, what: str) -> str:
    return digest_json([what, result.task.name, result.task.digest, result.subject_digest,
                        result.started_s])[7:29]  # fmt: skip


def _time(seconds: float) -> str:
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return moment.isoformat(timespec="seconds")


def _finite(value: Any) -> Any:
    """Returns `value` as strict JSON: what is not finite as a text, keys as texts."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)

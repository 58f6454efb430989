"""`cambium learn`: feeds a source to an ephemeral adapter, a few documents a call."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from cambium.cli.client import Client, connect, segment
from cambium.cli.failures import BROKEN, NO, WRONG_CALL, CommandFailed
from cambium.cli.options import AsJson, State, taking
from cambium.cli.output import print_json, print_rows, progress
from cambium.cli.sources import Bounds, Example, Source, deal, read_source
from cambium.serve.adapter_states import AdapterState
from cambium.serve.errors import AdapterNotFound

_COLUMNS = ("call", "examples", "steps", "loss_before", "loss_after", "state")


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """The options of `cambium learn`."""

    source: Annotated[Path, typer.Argument(help=".jsonl, .txt, .md, or a folder of them.")]
    adapter: Annotated[str, typer.Option("--adapter", help="Made when there is none.")]
    domain: Annotated[str | None, typer.Option("--domain", help="Of a new adapter.")] = None
    loss: Annotated[
        str,
        typer.Option(
            "--loss", help="What to minimise: task, entropy, preference, prompt, masked, passage."
        ),
    ] = "task"
    steps: Annotated[int, typer.Option("--steps", min=1, max=8, help="In each call.")] = 8
    lr: Annotated[float | None, typer.Option("--lr", help="Default: the server's own.")] = None
    consent: Annotated[
        bool, typer.Option("--consent", help="Let the server keep the examples; needed to propose.")
    ] = False
    state: State = None
    as_json: AsJson = False

    def body(self, examples: list[Example]) -> dict[str, object]:
        """Returns one call to learn."""
        body: dict[str, object] = {
            "adapter_id": self.adapter,
            "examples": examples,
            "loss": self.loss,
            "steps": self.steps,
            # The name alone: where it lies is nobody else's business.
            "source": self.source.resolve().name[:200],
        }
        if self.lr is not None:
            body["lr"] = self.lr
        if self.consent:
            body["consent"] = True
        return body


@taking(Lesson)
def learn(lesson: Lesson) -> None:
    """Teach an ephemeral adapter; it answers under its own name at once."""
    if lesson.lr is not None and not 0 < lesson.lr <= 1:
        raise CommandFailed(f"--lr {lesson.lr} is outside (0, 1]: leave it out", status=WRONG_CALL)
    source = read_source(lesson.source)
    if source.ignored:
        print(f"{source.ignored} files of other kinds are left out", file=sys.stderr)
    with connect(lesson.state) as client:
        calls = list(deal(source.examples, _bounds(client)))
        _ensure_adapter(client, lesson)
        answers = _teach(client, lesson, calls)
    _report(lesson, source, answers)


def _bounds(client: Client) -> Bounds:
    learning: Any = client.get("/policy").get("learning")
    try:
        return Bounds(
            max_examples=int(learning["max_examples_per_call"]),
            max_example_bytes=int(learning["max_example_bytes"]),
        )
    except (TypeError, KeyError, ValueError) as error:
        line = "the server does not say its bounds on learning: use a server of this version"
        raise CommandFailed(line, status=BROKEN) from error


def _ensure_adapter(client: Client, lesson: Lesson) -> None:
    try:
        found = client.get(f"/adapters/{segment(lesson.adapter)}")
    except CommandFailed as error:
        if error.code != AdapterNotFound.code:
            raise
        body: dict[str, object] = {"task_id": lesson.adapter}
        client.post(
            "/adapters/ephemeral", body | ({"domain": lesson.domain} if lesson.domain else {})
        )
        return
    if lesson.domain is not None and found.get("domain") != lesson.domain:
        line = f"adapter {lesson.adapter} exists, for domain {found.get('domain')}"
        raise CommandFailed(f"{line}: leave --domain out or name another", status=WRONG_CALL)


def _teach(client: Client, lesson: Lesson, calls: list[list[Example]]) -> list[dict[str, Any]]:
    """Sends the calls in order; stops at the first that leaves the adapter unable to learn."""
    answers: list[dict[str, Any]] = []
    with progress(estimate=True) as shown:
        task = shown.add_task("learning", total=len(calls))
        for number, examples in enumerate(calls, 1):
            try:
                answer = client.post("/learn/step", lesson.body(examples))
            except CommandFailed as error:
                done = f"call {number} of {len(calls)}: {error.line}"
                raise CommandFailed(done, status=error.status, code=error.code) from error
            answers.append({"call": number, "examples": len(examples), **answer})
            if answer["state"] != AdapterState.EPHEMERAL:
                break
            losses = f"loss {answer['loss_before']:.3f} → {answer['loss_after']:.3f}"
            shown.update(task, advance=1, description=losses)
    return answers


def _report(lesson: Lesson, source: Source, answers: list[dict[str, Any]]) -> None:
    if lesson.as_json:
        print_json({"adapter_id": lesson.adapter, "files": source.num_files, "calls": answers})
    else:
        print_rows(answers, _COLUMNS)
    undone = [str(a["call"]) for a in answers if not a["monitors"]["trust_region"]["ok"]]
    if undone:
        print(f"undone, for they left the trust region: call {', '.join(undone)}", file=sys.stderr)
    last = answers[-1]
    if last["state"] != AdapterState.EPHEMERAL:
        line = f"adapter {lesson.adapter} is {last['state']} after call {last['call']}"
        raise CommandFailed(f"{line}, an alignment check failed: see its monitors", status=NO)

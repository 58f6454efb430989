"""`cambium diff`: what a proposal changes, or how any two models differ in what they write."""

from __future__ import annotations

import time
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cambium.cli.client import Client, connect, segment
from cambium.cli.failures import WRONG_CALL, CommandFailed
from cambium.cli.options import AsJson, State
from cambium.cli.output import print_json, print_line, print_record, print_rows, progress
from cambium.cli.weighing import print_weights, weights_of

if TYPE_CHECKING:
    from cambium.evals.subject import Subject

_COLUMNS = (
    "before",
    "after",
    "effect",
    "low",
    "high",
    "q_value",
    "family_wise",
    "terms",
    "example",
)
MAX_SHOWN = 12
WAIT_S = 900.0
POLL_S = 0.5


class By(StrEnum):
    """What of two models is compared."""

    TEXTS = "texts"
    CHOICES = "choices"
    WEIGHTS = "weights"


def diff(
    names: Annotated[list[str], typer.Argument(metavar="A [B]", help="A proposal; or two models.")],
    prompts: Annotated[
        int, typer.Option("--prompts", min=10, max=1000, help="Of the fixed bank.")
    ] = 250,
    samples: Annotated[int, typer.Option("--samples", min=1, max=16, help="Of each prompt.")] = 2,
    by: Annotated[By, typer.Option("--by", help="What of two models is compared.")] = By.TEXTS,
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Show what a proposal changes, or how two models differ: base, adapter, revision, checkpoint.

    Two models write after the same prompts with the same seeds; what changed is found by clusters
    that do not know who wrote what, with controlled error, and what could not be seen is said.
    By choices nothing is written: what each finds likely among given choices is compared. By
    weights nothing is asked: what moved where is computed from the weights themselves.
    """
    if len(names) > 2:
        raise CommandFailed("a diff is of one proposal or of two models", status=WRONG_CALL)
    with connect(state) as client:
        if len(names) == 1:
            record = _of_proposal(client, names[0])
            print_json(record) if as_json else _print_proposal(record)
            return
        if by is By.WEIGHTS:
            record = weights_of(client, (names[0], names[1]))
            print_json(record) if as_json else print_weights(record)
            return
        arms = _open(client, (names[0], names[1]))
        record = (
            _of_choices(*arms)
            if by is By.CHOICES
            else _of_models(*arms, num_prompts=prompts, num_samples=samples)
        )
    if as_json:
        print_json(record)
    else:
        _print_choices(record) if by is By.CHOICES else _print_behaviour(record)


def _of_proposal(client: Client, proposal: str) -> dict[str, Any]:
    """Returns a proposal's diff, once nothing of it is still being computed."""
    deadline = time.monotonic() + WAIT_S
    while True:
        record = client.get(f"/proposals/{segment(proposal)}/diff")
        waiting = (record.get("behaviour") or {}).get("pending")
        if not waiting or time.monotonic() > deadline:
            return record
        time.sleep(POLL_S)


def _open(client: Client, names: tuple[str, str]) -> tuple[Subject, Subject]:
    """Returns both models.

    Raises:
        CommandFailed: they are the same weights.
    """
    from cambium.cli.subjects import open_subject

    before, after = (open_subject(client, name) for name in names)
    if before.digest == after.digest:
        line = f"{names[0]} and {names[1]} are the same weights: name two that differ"
        raise CommandFailed(line, status=WRONG_CALL)
    return before, after


def _of_choices(before: Subject, after: Subject) -> dict[str, Any]:
    from cambium.evals.behaviour import (
        BehaviourConfig,
        bank_digest,
        choice_bank,
        choice_diff,
        choice_shares,
    )
    from cambium.models.encoder import SentenceEncoder

    items = choice_bank()
    with progress(estimate=True) as shown:
        task = shown.add_task("asking both models", total=2.0)
        arms = []
        for subject in (before, after):
            arms.append(choice_shares(subject, items))
            shown.advance(task)
        shown.update(task, description="embedding, clustering, testing")
        embed = SentenceEncoder().embed
        found = choice_diff(items, *arms, embed=embed, config=BehaviourConfig())
    return {**_named(before, after), "choices": bank_digest(items), **found.to_json()}


def _of_models(
    before: Subject, after: Subject, *, num_prompts: int, num_samples: int
) -> dict[str, Any]:
    # Here and not above: these imports take seconds, and most commands never embed.
    from cambium.evals.behaviour import BehaviourConfig, behaviour_diff, prompt_bank
    from cambium.evals.behaviour.sampling import SamplingPlan, sample_arms
    from cambium.models.encoder import SentenceEncoder

    bank = prompt_bank().first(num_prompts)
    plan = SamplingPlan(num_samples=num_samples)
    with progress(estimate=True) as shown:
        task = shown.add_task("sampling both models", total=1.0)
        arms = sample_arms(
            before,
            after,
            bank.prompts,
            plan=plan,
            progress=lambda share: shown.update(task, completed=share),
        )
        shown.update(task, description="embedding, clustering, testing")
        found = behaviour_diff(
            bank.prompts, *arms, embed=SentenceEncoder().embed, config=BehaviourConfig()
        )
    return {
        **_named(before, after),
        "prompts": bank.digest,
        "sampling": vars(plan),
        **found.to_json(),
    }


def _named(before: Subject, after: Subject) -> dict[str, Any]:
    return {side: {"name": s.name, "digest": s.digest} for side, s in (("a", before), ("b", after))}


def _print_proposal(record: dict[str, Any]) -> None:
    behaviour = record.pop("behaviour")
    print_record(record)
    if behaviour.get("available"):
        _print_behaviour(behaviour)
    else:
        print_line(f"behaviour: {behaviour.get('why', 'none')}")


def _print_behaviour(record: dict[str, Any]) -> None:
    rows = [
        {**change, "terms": ", ".join(change["terms"]), "example": (change["medoids"] or [""])[0]}
        for change in record["changes"]
        if change["q_value"] <= record["config"]["q"]
    ]
    title = f"{record['discoveries']} of {record['num_tested']} clusters changed"
    print_rows(rows[:MAX_SHOWN], _COLUMNS, title=title)
    style = [row for row in record["style"] if row["q_value"] <= record["config"]["q"]]
    print_rows(style, ("feature", "before", "after", "effect", "q_value"), title="style")
    print_line(f"anything at all: p = {record['omnibus']:.4f}")
    print_line(f"not seen: {record['statement']}")


def _print_choices(record: dict[str, Any]) -> None:
    rows = [
        {**change, "terms": ", ".join(change["terms"]), "example": (change["medoids"] or [""])[0]}
        for change in record["changes"]
        if change["q_value"] <= record["config"]["q"]
    ]
    title = f"{record['discoveries']} of {record['num_tested']} clusters of choices moved"
    print_rows(rows[:MAX_SHOWN], _COLUMNS, title=title)
    columns = ("family", "prompts", "before", "after", "low", "high", "q_value")
    print_rows(record["families"][:MAX_SHOWN], columns, title="share of the wanted choice")
    print_line(f"anything at all: p = {record['omnibus']:.4f}")
    print_line(f"not seen: {record['statement']}")

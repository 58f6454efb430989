"""`cambium diff`: what a proposal changes, or how any two models differ in what they write."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from cambium.cli.client import Client, connect, segment
from cambium.cli.failures import WRONG_CALL, CommandFailed
from cambium.cli.options import AsJson, State
from cambium.cli.output import print_json, print_line, print_record, print_rows, progress

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


def diff(
    subject: Annotated[str, typer.Argument(metavar="A", help="A proposal, or the first model.")],
    other: Annotated[str | None, typer.Argument(metavar="[B]", help="The second model.")] = None,
    prompts: Annotated[
        int, typer.Option("--prompts", min=10, max=1000, help="Of the fixed bank.")
    ] = 250,
    samples: Annotated[int, typer.Option("--samples", min=1, max=16, help="Of each prompt.")] = 2,
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Show what a proposal changes, or how two models differ: base, adapter, revision, checkpoint.

    Two models write after the same prompts with the same seeds; what changed is found by clusters
    that do not know who wrote what, with controlled error, and what could not be seen is said.
    """
    with connect(state) as client:
        if other is None:
            record = _of_proposal(client, subject)
            print_json(record) if as_json else _print_proposal(record)
            return
        record = _of_models(client, (subject, other), num_prompts=prompts, num_samples=samples)
    print_json(record) if as_json else _print_behaviour(record)


def _of_proposal(client: Client, proposal: str) -> dict[str, Any]:
    """Returns a proposal's diff, once nothing of it is still being computed."""
    deadline = time.monotonic() + WAIT_S
    while True:
        record = client.get(f"/proposals/{segment(proposal)}/diff")
        waiting = (record.get("behaviour") or {}).get("pending")
        if not waiting or time.monotonic() > deadline:
            return record
        time.sleep(POLL_S)


def _of_models(
    client: Client, names: tuple[str, str], *, num_prompts: int, num_samples: int
) -> dict[str, Any]:
    # Here and not above: these imports take seconds, and most commands never embed.
    from cambium.cli.subjects import open_subject
    from cambium.evals.behaviour import BehaviourConfig, behaviour_diff, prompt_bank
    from cambium.evals.behaviour.sampling import SamplingPlan, sample_arms
    from cambium.models.encoder import SentenceEncoder

    before, after = (open_subject(client, name) for name in names)
    if before.digest == after.digest:
        line = f"{names[0]} and {names[1]} are the same weights: name two that differ"
        raise CommandFailed(line, status=WRONG_CALL)
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
        "a": {"name": before.name, "digest": before.digest},
        "b": {"name": after.name, "digest": after.digest},
        "prompts": bank.digest,
        "sampling": vars(plan),
        **found.to_json(),
    }


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

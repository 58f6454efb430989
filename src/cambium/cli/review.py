"""The review of a change: lists, proposals, their evidence, signatures, merge and rollback."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from cambium.cli.client import Client, connect, rows_of, segment
from cambium.cli.failures import NO, WRONG_CALL, CommandFailed
from cambium.cli.options import AsJson, Key, Keys, ProposalId, State
from cambium.cli.output import print_json, print_line, print_record, print_rows, progress
from cambium.cli.signing import signed_body
from cambium.core.evidence import Outcome
from cambium.core.nouns import Action, ProposalState

POLL_S = 0.5


class Kind(StrEnum):
    """What a candidate can be."""

    LORA = "lora"
    SOFT_PROMPT = "soft_prompt"


_WORKING = frozenset({ProposalState.CONSOLIDATING, ProposalState.CHECKING})
_REFUSED = frozenset({ProposalState.REJECTED, ProposalState.FAILED})
_COLUMNS = {
    "adapters": ("adapter_id", "state", "digest", "domain", "steps", "parent_revision"),
    "revisions": ("number", "kind", "served", "quarantined", "of", "digest", "attestation"),
    "proposals": ("id", "state", "adapter", "domain", "parent_revision", "reason"),
    "gates": ("name", "verdict", "passes", "required", "effect", "ci", "threshold", "why"),
}
# Parts of a proposal that are for programs, or are shown by a table of their own.
_NOT_SHOWN = frozenset({"gates", "provenance", "progress"})


def adapters(state: State = None, as_json: AsJson = False) -> None:
    """List the adapters: ephemeral, frozen, stable, quarantined, expired."""
    _list("adapters", state, as_json)


def revisions(state: State = None, as_json: AsJson = False) -> None:
    """List the revisions, each a signed manifest of the stable bank."""
    _list("revisions", state, as_json)


def proposals(state: State = None, as_json: AsJson = False) -> None:
    """List the proposals and where each stands."""
    _list("proposals", state, as_json)


def propose(
    adapter: Annotated[str, typer.Argument(metavar="ADAPTER")],
    into: Annotated[str, typer.Option("--into", help="Domain of the stable bank.")],
    kind: Annotated[
        Kind | None, typer.Option("--kind", help="Of the candidate; its parent's, or lora.")
    ] = None,
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Propose what an ephemeral adapter learned for a domain of the stable bank.

    With --state, waits until the candidate is consolidated and its gates have decided.
    """
    with connect(state) as client:
        asked: dict[str, object] = {"adapter_id": adapter, "domain": into}
        if kind:
            asked["kind"] = str(kind)
        answer = client.post("/adapters/propose_consolidation", asked)
        if client.in_process:
            answer = {"proposal_id": answer["proposal_id"], **_finished(client, answer)}
    if as_json:
        print_json(answer)
    else:
        print_line(f"proposal {answer['proposal_id']}: {answer['state']}")
    if answer["state"] in _REFUSED or _has_error(answer):
        why = answer.get("reason") or "; ".join(answer.get("blockers") or []) or answer["state"]
        raise CommandFailed(f"the proposal is held back: {why}: see `cambium show`", status=NO)


def show(proposal: ProposalId, state: State = None, as_json: AsJson = False) -> None:
    """Show a proposal: its digests, gates, approvals and what still blocks it."""
    with connect(state) as client:
        record = client.get(f"/proposals/{segment(proposal)}")
    if as_json:
        print_json(record)
        return
    print_record({k: v for k, v in record.items() if k not in _NOT_SHOWN})
    print_rows(rows_of(record, "gates"), _COLUMNS["gates"], title="gates")


def check(proposal: ProposalId, state: State = None, as_json: AsJson = False) -> None:
    """Take one more look of the declared gates, on fresh items."""
    with connect(state) as client:
        answer = client.post("/gates/align_review", {"proposal_id": proposal})
    print_json(answer) if as_json else print_record(answer)
    if answer.get("verdict") != Outcome.PASS:
        verdict = answer.get("verdict")
        raise CommandFailed(f"the gates' verdict is {verdict}: see `cambium show`", status=NO)


def approve(proposal: ProposalId, key: Key, state: State = None, as_json: AsJson = False) -> None:
    """Sign a proposal's digest with your own key, here, and send the signature."""
    with connect(state) as client:
        path = f"/proposals/{segment(proposal)}"
        record = client.get(path)
        target = record.get("proposal_digest")
        if not isinstance(target, str):
            line = f"proposal {proposal} is {record.get('state')} and has no digest to sign yet"
            raise CommandFailed(f"{line}: wait for its gates", status=NO)
        body = signed_body(key, Action.APPROVE, target=target, standing=record)
        answer = client.post(f"{path}/approvals", body)
    if as_json:
        print_json(answer)
    else:
        print_line(f"signed {target} with {body['key_id']}")


def waive(
    proposal: ProposalId,
    gate: Annotated[str, typer.Argument(metavar="GATE")],
    key: Key,
    reason: Annotated[str, typer.Option("--reason", help="Why; it goes into the log.")],
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Sign that a proposal may pass without a gate; k approvers must, and the policy allow it."""
    with connect(state) as client:
        path = f"/proposals/{segment(proposal)}"
        record = client.get(path)
        gates = {row["name"]: row for row in rows_of(record, "gates")}
        target = gates.get(gate, {}).get("waiver_target")
        if not isinstance(target, str):
            line = f"gate {gate!r} of proposal {proposal} cannot be waived"
            raise CommandFailed(f"{line}: see `waivable` in the policy", status=NO)
        body = signed_body(key, Action.WAIVE_GATE, target=target, standing=record)
        answer = client.post(f"{path}/waivers", {**body, "reason": reason})
    if as_json:
        print_json(answer)
    else:
        print_line(f"signed a waiver of {gate} with {body['key_id']}")


def reject(
    proposal: ProposalId,
    reason: Annotated[str, typer.Option("--reason", help="Why; it goes into the log.")],
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """End a proposal, with a reason."""
    with connect(state) as client:
        answer = client.post(f"/proposals/{segment(proposal)}/reject", {"reason": reason})
    print_json(answer) if as_json else print_line(f"proposal {proposal}: rejected")


def merge(proposal: ProposalId, state: State = None, as_json: AsJson = False) -> None:
    """Merge an approved proposal: a new signed revision serves without a restart."""
    with connect(state) as client:
        answer = client.post("/adapters/merge", {"proposal_id": proposal})
    print_json(answer) if as_json else print_record(answer)
    if not answer.get("signed_digest") or answer["signed_digest"] != answer.get("served_digest"):
        line = f"served {answer.get('served_digest')}, signed {answer.get('signed_digest')}"
        raise CommandFailed(f"{line}: roll back and see `cambium log`", status=NO)


def rollback(
    revision: Annotated[int, typer.Argument(metavar="REVISION", min=0)],
    key: Keys,
    more_keys: Annotated[list[Path] | None, typer.Argument(metavar="[KEY]...")] = None,
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Serve an earlier revision again, as a new and higher one; keys may follow each other."""
    with connect(state) as client:
        signatures = _over_revision(client, revision, Action.ROLLBACK, [*key, *(more_keys or ())])
        answer = client.post("/revisions/rollback", {"to": revision, "signatures": signatures})
    print_json(answer) if as_json else print_record(answer)


def quarantine(
    revision: Annotated[int, typer.Argument(metavar="REVISION", min=0)],
    key: Keys,
    reason: Annotated[str, typer.Option("--reason", help="It goes into the log.")],
    more_keys: Annotated[list[Path] | None, typer.Argument(metavar="[KEY]...")] = None,
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Let what a revision brought never answer again: k approvers sign; roll back from it first."""
    with connect(state) as client:
        signatures = _over_revision(client, revision, Action.REVOKE, [*key, *(more_keys or ())])
        body: dict[str, object] = {"reason": reason, "signatures": signatures}
        answer = client.post(f"/revisions/{revision}/quarantine", body)
    print_json(answer) if as_json else print_record(answer)


def _over_revision(
    client: Client, revision: int, action: Action, files: list[Path]
) -> list[dict[str, object]]:
    standing = client.get("/revisions")
    rows = rows_of(standing, "revisions")
    target = next((row["digest"] for row in rows if row["number"] == revision), None)
    if target is None:
        line = f"there is no revision {revision}: see `cambium revisions`"
        raise CommandFailed(line, status=WRONG_CALL)
    return [signed_body(file, action, target=target, standing=standing) for file in files]


def _list(noun: str, state: Path | None, as_json: bool) -> None:
    with connect(state) as client:
        answer = client.get(f"/{noun}")
    rows = rows_of(answer, noun)
    print_json(answer) if as_json else print_rows(rows, _COLUMNS[noun])


def _finished(client: Client, answer: dict[str, Any]) -> dict[str, Any]:
    """Waits for the jobs of a proposal: without a server, they end with this command."""
    path = f"/proposals/{segment(answer['proposal_id'])}"
    with progress() as shown:
        task = shown.add_task("waiting", total=1.0)
        while (record := client.get(path))["state"] in _WORKING and not _has_error(record):
            job = record.get("progress") or {}
            shown.update(task, completed=job.get("share", 0.0), description=_doing(record, job))
            time.sleep(POLL_S)
    return record


def _doing(record: dict[str, Any], job: dict[str, Any]) -> str:
    stage = str(job.get("stage") or record["state"])
    return stage if job.get("loss") is None else f"{stage}, loss {job['loss']:.3f}"


def _has_error(record: dict[str, Any]) -> bool:
    """Returns whether a gate could not be measured: then no look goes on by itself."""
    return any(gate.get("verdict") == Outcome.ERROR for gate in record.get("gates", ()))

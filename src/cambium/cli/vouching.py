"""`cambium vouch`: an evaluator who holds their own key signs what the gates measured."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from cambium.cli.client import connect, segment
from cambium.cli.failures import NO, CommandFailed
from cambium.cli.options import AsJson, Key, ProposalId, State
from cambium.cli.output import print_json, print_line, print_rows
from cambium.cli.signing import read_key

if TYPE_CHECKING:
    from cambium.trust.keys import PublicKey

_COLUMNS = ("look", "gate", "verdict", "effect", "ci", "threshold", "why")


def vouch(proposal: ProposalId, key: Key, state: State = None, as_json: AsJson = False) -> None:
    """Read a proposal's evidence, judge every verdict again from its numbers, and sign it.

    Where a verdict does not follow from what was measured and from the bar, nothing is signed.
    """
    from cambium.cli.record import server_key
    from cambium.trust.dsse import countersign

    evaluator = read_key(key)
    path = f"/proposals/{segment(proposal)}/evidence"
    with connect(state) as client:
        found, public = client.get(path), server_key(client)
        rows = [_judged(row["envelope"], public) for row in found.get("evidence", [])]
        if not rows:
            raise CommandFailed(f"proposal {proposal} has no evidence: wait for a look", status=NO)
        signed: dict[str, object] = {}
        for row in found["evidence"]:
            envelope: Any = countersign(evaluator, row["envelope"])
            signed[row["digest"]] = envelope["signatures"][-1]["sig"]
        answer = client.post(path, {"key_id": evaluator.key_id, "signatures": signed})
    if as_json:
        print_json(answer)
        return
    print_rows(rows, _COLUMNS)
    print_line(f"signed {len(rows)} verdicts of {proposal} with {evaluator.key_id}")


def _judged(envelope: dict[str, Any], server: PublicKey) -> dict[str, Any]:
    """Returns what a statement says, as a row, where the server signed it and it holds together."""
    from cambium.core.evidence import GateSpec, Measurement
    from cambium.lifecycle.gates import COUNTED, judge
    from cambium.trust.dsse import open_envelope

    statement: Any = open_envelope(envelope, public_key=server)
    said, verdict = statement["predicate"], statement["predicate"]["verdict"]
    measured, spec = verdict["measurement"], GateSpec(**said["bar"])
    if verdict["outcome"] in COUNTED:
        numbers = {**measured, "ci": tuple(measured["ci"]), "notes": tuple(measured["notes"])}
        numbers["mde"] = float("inf") if measured["mde"] is None else measured["mde"]
        again = judge(spec, Measurement(**numbers)).to_json()
        subject = statement["subject"][0]["digest"]["sha256"]
        about = str(measured["subject"].get("candidate")).removeprefix("sha256:")
        if json.dumps(again, sort_keys=True) != json.dumps(verdict, sort_keys=True):
            line = f"gate {spec.name} of look {said['look'] + 1} does not follow from its numbers"
            raise CommandFailed(f"{line}: do not sign this", status=NO)
        if subject != about:
            raise CommandFailed(f"gate {spec.name} measured other bytes: do not sign", status=NO)
    return {
        "look": said["look"] + 1,
        "gate": spec.name,
        "verdict": verdict["outcome"],
        "effect": measured["effect"] if measured else None,
        "ci": measured["ci"] if measured else None,
        "threshold": spec.threshold,
        "why": verdict["why"],
    }

"""`cambium kill` needs no server that answers; `cambium revive` needs the quorum."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cambium.cli.client import connect
from cambium.cli.failures import BROKEN, NO, WRONG_CALL, CommandFailed
from cambium.cli.options import AsJson, Keys, State
from cambium.cli.output import print_json, print_line
from cambium.cli.signing import signed_body
from cambium.core.nouns import Action

if TYPE_CHECKING:
    from cambium.serve.store.folder_lock import Holder
    from cambium.serve.store.state import State as Store

OBEYS_IN_S = 1.0
DIES_IN_S = 5.0
_STEP_S = 0.02
MoreKeys = Annotated[list[Path] | None, typer.Argument(metavar="[KEY]...")]


def kill(
    key: Keys,
    more_keys: MoreKeys = None,
    reason: Annotated[str, typer.Option("--reason", help="It goes into the log.")] = "not said",
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Stop answering, learning and merging; one operator's or approver's key is enough.

    With --state on the server's machine it works without the server: one that does not obey
    within a second is ended by the kernel.
    """
    keys = [*key, *(more_keys or [])]
    if state is None:
        with connect(None) as client:
            standing = client.get("/kill")
            signed = [_signed(k, standing) for k in keys]
            answer = client.post("/kill", {"reason": reason, "signatures": signed})
        how = "by the server"
    else:
        answer = {"killed": True, "reason": reason, "how": _kill_folder(state, keys, reason)}
        how = answer["how"]
    print_json(answer) if as_json else print_line(f"killed, {how}: {reason}")


def revive(
    key: Keys, more_keys: MoreKeys = None, state: State = None, as_json: AsJson = False
) -> None:
    """Lift a kill: k approvers sign its digest."""
    with connect(state) as client:
        standing = client.get("/kill")
        if standing.get("killed") is not True:
            raise CommandFailed("the system is not killed: see `cambium log`", status=NO)
        signed = [
            signed_body(k, Action.REVIVE, target=str(standing["digest"]), standing=standing)
            for k in [*key, *(more_keys or [])]
        ]
        answer = client.post("/revive", {"signatures": signed})
    print_json(answer) if as_json else print_line("revived")


def _signed(key: Path, standing: dict[str, Any]) -> dict[str, object]:
    target = standing.get("target")
    if not isinstance(target, str):
        line = "the server shows nothing that a kill could sign"
        raise CommandFailed(f"{line}: give --state on its machine", status=BROKEN)
    return signed_body(key, Action.KILL, target=target, standing=standing)


def _kill_folder(folder: Path, keys: list[Path], reason: str) -> str:
    """Writes the order beside the state and sees that it is obeyed; returns by whom."""
    from cambium.serve.kill_switch import KILL_FILE, write_kill_file
    from cambium.serve.signed_records import signature_from_json
    from cambium.serve.store.folder_lock import lock_holders
    from cambium.serve.store.state import State

    with State.open(folder, exclusive=False) as store:
        standing = _standing(store)
        signed = [signature_from_json(_signed(k, standing)) for k in keys]
        allowed = {row["key_id"] for row in standing["people"]}
        if not allowed & {s.key_id for s in signed}:
            line = "none of these keys may kill"
            raise CommandFailed(f"{line}: use an approver's or an operator's", status=NO)
        write_kill_file(folder / KILL_FILE, reason, signed)
    holders = lock_holders(folder)
    if not holders:
        return "for the next start, no server runs on this state"
    deadline = time.monotonic() + OBEYS_IN_S
    while time.monotonic() < deadline:
        if all(holder.obeyed for holder in lock_holders(folder)):
            return f"by the server, process {_pids(holders)}"
        time.sleep(_STEP_S)
    hung = {holder.pid for holder in lock_holders(folder) if not holder.obeyed}
    for pid in hung:
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + DIES_IN_S
    while left := [holder for holder in lock_holders(folder) if holder.pid in hung]:
        if time.monotonic() > deadline:
            raise CommandFailed(
                f"process {_pids(left)} does not die: cut the machine off", status=BROKEN
            )
        time.sleep(_STEP_S)
    ended = ", ".join(map(str, sorted(hung)))
    return f"process {ended} did not obey within {OBEYS_IN_S:g} s and was ended"


def _pids(holders: list[Holder]) -> str:
    return ", ".join(str(holder.pid) for holder in holders)


def _standing(store: Store) -> dict[str, Any]:
    with store.read() as tx:
        policy = tx.active_policy()
        revisions = tx.list_revisions()
        people = [
            {"key_id": row.key_id}
            for row in tx.list_keys()
            if row.role in ("approver", "operator", "root") and row.revoked_at is None
        ]
        version = tx.state_version()
    if policy is None or not revisions:
        line = "this state has no signed policy or never served"
        raise CommandFailed(f"{line}: stop the process instead", status=WRONG_CALL)
    return {
        "policy_digest": policy.digest,
        "state_version": version,
        "target": revisions[-1].digest,
        "people": people,
    }

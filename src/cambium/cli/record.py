"""What happened: the audit log, which is verified here and not where it was written, and traces."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from cambium.cli.client import Client, connect, rows_of, segment
from cambium.cli.failures import BROKEN, NO, CommandFailed
from cambium.cli.options import AsJson, InLane, Lane, State
from cambium.cli.output import print_json, print_line, print_record, print_rows
from cambium.cli.request_lane import verify_requests, verify_trace
from cambium.cli.succession import KnownKey

if TYPE_CHECKING:
    from cambium.trust.keys import PublicKey

Record = TypeVar("Record")
_LOG_COLUMNS = {
    Lane.LIFECYCLE: ("seq", "at", "kind", "body"),
    Lane.REQUESTS: ("seq", "at", "request_id", "hash"),
}
_REPLAY_COLUMNS = ("call", "steps", "digest", "replayed", "ok")


def log(
    verify: Annotated[
        bool, typer.Option("--verify", help="Check every entry and the signed checkpoint, here.")
    ] = False,
    since: Annotated[int, typer.Option("--since", min=1, help="First entry to show.")] = 1,
    lane: InLane = Lane.LIFECYCLE,
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Show the audit log; with --verify, recompute its whole tree first."""
    with connect(state) as client:
        verified = _verify(client, lane) if verify else 0
        entries = [row for page in _pages(client, since, lane) for row in page]
    if as_json:
        print_json({"entries": entries} | ({"verified": verified} if verify else {}))
        return
    print_rows([_shown(row) for row in entries], _LOG_COLUMNS[lane])
    if verify:
        print_line(f"verified: {verified} entries under the server's signed checkpoint")


def trace(
    request_id: Annotated[str, typer.Argument(metavar="REQUEST_ID")],
    verify: Annotated[
        bool, typer.Option("--verify", help="Check that it is what was logged, here.")
    ] = False,
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Show what stood behind one answer; with --verify, prove that it is what was logged."""
    with connect(state) as client:
        record = client.get(f"/traces/{segment(request_id)}")
        seq = verify_trace(client, dict(record), server_key(client)) if verify else 0
    print_json(record) if as_json else print_record(record)
    if verify and not as_json:
        print_line(f"verified: leaf {seq} of the requests under the server's signed checkpoint")


def replay(
    adapter: Annotated[str, typer.Argument(metavar="ADAPTER")],
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Derive an adapter again from the manifests of its updates, and compare digests."""
    with connect(state) as client:
        answer = client.post(f"/adapters/{segment(adapter)}/replay", {})
    calls = rows_of(answer, "calls")
    print_json(answer) if as_json else print_rows(calls, _REPLAY_COLUMNS)
    if answer.get("ok") is True:
        return
    wrong = next((row for row in calls if not row.get("ok")), {})
    where = "" if wrong.get("same_machine") else ": it was learned on another machine or version"
    raise CommandFailed(
        f"call {wrong.get('call')} of {adapter} comes out otherwise{where}", status=NO
    )


def _pages(client: Client, since: int, lane: Lane) -> Iterator[list[dict[str, Any]]]:
    """Yields the log page by page, as long as each goes on after the last."""
    while page := client.rows("/audit", "entries", since=since, lane=str(lane)):
        yield page
        following = page[-1].get("seq", 0) + 1
        if following <= since:
            raise CommandFailed("the server repeats its log: look at its log", status=BROKEN)
        since = following


def _verify(client: Client, lane: Lane) -> int:
    """Returns how many entries the server's checkpoint vouches for, all recomputed here.

    The checkpoint is read first: what is appended meanwhile is not yet under it.

    Raises:
        AuditBroken: names the first entry that does not hold.
    """
    from cambium.trust.audit import AuditEntry, Checkpoint, verify_log

    signed = built(Checkpoint, client.get("/audit/checkpoint", lane=str(lane)))
    public = server_key(client, signed.key_id)
    rows = (row for page in _pages(client, 1, lane) for row in page)
    if lane is Lane.REQUESTS:
        return verify_requests(
            rows, checkpoint=signed, server_public=public, forgotten=_forgotten(client)
        )
    entries, known = (built(AuditEntry, row) for row in rows), KnownKey()
    covered = known.watch(e for e in entries if e.seq <= signed.size)
    verified = verify_log(covered, checkpoint=signed, server_public=public)
    known.check(signed.key_id)
    return verified


def _forgotten(client: Client) -> int:
    """Returns up to which leaf traces were deleted by age, as the verified log says."""
    _verify(client, Lane.LIFECYCLE)
    said = [
        row["body"]["up_to"]
        for page in _pages(client, 1, Lane.LIFECYCLE)
        for row in page
        if row["kind"] == "requests.forgotten"
    ]
    return max(said, default=0)


def server_key(client: Client, key_id: str | None = None) -> PublicKey:
    """Returns the key that the server lists as its own, and that signed if `key_id` did."""
    from cambium.trust.keys import PublicKey

    own = [k for k in client.rows("/keys", "keys") if k.get("role") == "server"]
    if len(own) != 1 or key_id not in (None, own[0].get("key_id")):
        line = f"the log's checkpoint is signed by {key_id}, which is no server key"
        raise CommandFailed(f"{line}: do not trust this log", status=NO)
    return PublicKey(raw=str(own[0]["public"]))


def built(kind: type[Record], row: dict[str, Any]) -> Record:
    """Returns the record that a row of the server's answer holds, other fields left out."""
    names = {field.name for field in fields(kind)}  # pyright: ignore[reportArgumentType]
    if not names <= row.keys():
        missing = ", ".join(sorted(names - row.keys()))
        raise CommandFailed(f"a log record lacks {missing}: it cannot be verified", status=NO)
    return kind(**{name: row[name] for name in names})


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    if "at" not in row:  # a leaf whose trace was amended since
        return {**row, "at": ""}
    at = datetime.fromtimestamp(row["at"] / 1000, tz=UTC).isoformat(timespec="seconds")
    return {**row, "at": at}

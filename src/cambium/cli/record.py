"""What happened: the audit log, which is verified here and not where it was written, and traces."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

import typer

from cambium.cli.client import Client, connect, rows_of, segment
from cambium.cli.failures import BROKEN, NO, CommandFailed
from cambium.cli.options import AsJson, State
from cambium.cli.output import print_json, print_line, print_record, print_rows

Record = TypeVar("Record")
_REPLAY_COLUMNS = ("call", "steps", "digest", "replayed", "ok")


def log(
    verify: Annotated[
        bool, typer.Option("--verify", help="Check every entry and the signed checkpoint, here.")
    ] = False,
    since: Annotated[int, typer.Option("--since", min=1, help="First entry to show.")] = 1,
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Show the audit log; with --verify, recompute its whole tree first."""
    with connect(state) as client:
        verified = _verify(client) if verify else 0
        entries = [row for page in _pages(client, since) for row in page]
    if as_json:
        print_json({"entries": entries} | ({"verified": verified} if verify else {}))
        return
    print_rows([_shown(row) for row in entries], ("seq", "at", "kind", "body"))
    if verify:
        print_line(f"verified: {verified} entries under the server's signed checkpoint")


def trace(
    request_id: Annotated[str, typer.Argument(metavar="REQUEST_ID")],
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Show what stood behind one answer."""
    with connect(state) as client:
        record = client.get(f"/traces/{segment(request_id)}")
    print_json(record) if as_json else print_record(record)


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


def _pages(client: Client, since: int) -> Iterator[list[dict[str, Any]]]:
    """Yields the log page by page, as long as each goes on after the last."""
    while page := client.rows("/audit", "entries", since=since):
        yield page
        following = page[-1].get("seq", 0) + 1
        if following <= since:
            raise CommandFailed("the server repeats its log: look at its log", status=BROKEN)
        since = following


def _verify(client: Client) -> int:
    """Returns how many entries the server's checkpoint vouches for, all recomputed here.

    The checkpoint is read first: what is appended meanwhile is not yet under it.

    Raises:
        AuditBroken: the log does not verify.
        CommandFailed: the server shows no checkpoint or no key of its own.
    """
    from cambium.trust.audit import AuditEntry, Checkpoint, verify_log
    from cambium.trust.keys import PublicKey

    signed = built(Checkpoint, client.get("/audit/checkpoint"))
    server = [k for k in client.rows("/keys", "keys") if k.get("key_id") == signed.key_id]
    if not server or server[0].get("role") != "server":
        line = f"the log's checkpoint is signed by {signed.key_id}, which is no server key"
        raise CommandFailed(f"{line}: do not trust this log", status=NO)
    entries = (built(AuditEntry, row) for page in _pages(client, 1) for row in page)
    return verify_log(
        (e for e in entries if e.seq <= signed.size),
        checkpoint=signed,
        server_public=PublicKey(raw=server[0]["public"]),
    )


def built(kind: type[Record], row: dict[str, Any]) -> Record:
    """Returns the record that a row of the server's answer holds, other fields left out."""
    names = {field.name for field in fields(kind)}  # pyright: ignore[reportArgumentType]
    if not names <= row.keys():
        missing = ", ".join(sorted(names - row.keys()))
        raise CommandFailed(f"a log record lacks {missing}: it cannot be verified", status=NO)
    return kind(**{name: row[name] for name in names})


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    at = datetime.fromtimestamp(row["at"] / 1000, tz=UTC).isoformat(timespec="seconds")
    return {**row, "at": at}

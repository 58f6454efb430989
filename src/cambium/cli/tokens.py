"""`cambium token`: bearer tokens, each for one tenant and its roles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from cambium.cli.client import connect, rows_of, segment
from cambium.cli.options import AsJson, State, taking
from cambium.cli.output import print_json, print_record, print_rows

app = typer.Typer(
    name="token", help="Make bearer tokens, see them, revoke one.", no_args_is_help=True
)
_COLUMNS = ("token_id", "name", "tenant", "roles", "expires_at", "revoked_at")


@dataclass(frozen=True, kw_only=True)
class Order:
    """The options of `cambium token new`."""

    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose it is, for the log.")]
    role: Annotated[
        list[str], typer.Option("--role", help="client, learner, reviewer or operator; repeat it.")
    ]
    tenant: Annotated[
        str, typer.Option("--tenant", help="Whose adapters; * for reviewers and operators of all.")
    ] = "default"
    rate: Annotated[
        int | None,
        typer.Option("--rate", help="Requests a minute; the server's default if left out."),
    ] = None
    days: Annotated[
        int | None, typer.Option("--days", help="How long it counts; for good if left out.")
    ] = None
    state: State = None
    as_json: AsJson = False


@app.command(name="new")
@taking(Order)
def new(order: Order) -> None:
    """Make a token; it is shown now and never again. From the first on, every request needs one."""
    body: dict[str, object] = {"name": order.name, "tenant": order.tenant, "roles": order.role}
    if order.rate is not None:
        body["requests_per_minute"] = order.rate
    if order.days is not None:
        body["days"] = order.days
    with connect(order.state) as client:
        answer = client.post("/tokens", body)
    print_json(answer) if order.as_json else print_record(answer)


@app.command(name="list")
def list_tokens(state: State = None, as_json: AsJson = False) -> None:
    """List the tokens' standings; the tokens themselves nobody has but their holders."""
    with connect(state) as client:
        answer = client.get("/tokens")
    rows = [{**row, "roles": ", ".join(row["roles"])} for row in rows_of(answer, "tokens")]
    print_json(answer) if as_json else print_rows(rows, _COLUMNS)


@app.command()
def revoke(
    token_id: Annotated[str, typer.Argument(metavar="TOKEN_ID", help="From `cambium token list`.")],
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Take a token out of service, at once."""
    with connect(state) as client:
        answer = client.delete(f"/tokens/{segment(token_id)}")
    print_json(answer) if as_json else print_record(answer)

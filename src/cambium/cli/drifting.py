"""`cambium drift`: what every merge changed, against the bare base and against its parent."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from cambium.cli.client import Client, connect
from cambium.cli.options import AsJson, State
from cambium.cli.output import print_json, print_line, print_rows, progress

# One reading for each measure; all of them are in the JSON and in the picture.
SHOWN = ("concept.direction", "value.choice", "bias.association", "diversity.distinct",
         "calibration.brier", "composition.replay")  # fmt: skip
WAIT_S = 900.0
POLL_S = 0.5


def drift(
    picture: Annotated[
        Path | None, typer.Option("--picture", help="Write all readings into this SVG file.")
    ] = None,
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Show what each merge changed, against the bare base and its parent, and who stands out.

    Waits until the newest merges are measured.
    """
    with connect(state) as client:
        record = _measured(client)
        drawn = client.download("/drift.svg") if picture else b""
    if picture:
        picture.write_bytes(drawn)
    print_json(record) if as_json else _print(record)


def _measured(client: Client) -> dict[str, Any]:
    deadline = time.monotonic() + WAIT_S
    with progress() as shown:
        task = shown.add_task("measuring drift", total=None)
        while True:
            record = client.get("/drift")
            pending = len(record["pending"])
            if not pending or time.monotonic() > deadline:
                return record
            shown.update(task, description=f"measuring drift, {pending} merges to go")
            time.sleep(POLL_S)


def _print(record: dict[str, Any]) -> None:
    for side, title in (("against_base", "since the bare base"),
                        ("against_parent", "since the parent")):  # fmt: skip
        rows = [
            {"revision": d["revision"], "domain": d["label"],
             **{name: _short(d[side].get(name)) for name in SHOWN}}
            for d in record["series"]
        ]  # fmt: skip
        print_rows(rows, ("revision", "domain", *SHOWN), title=title)
    if not record["available"]:
        print_line("this server is set up to measure no drift")
    for revision, why in record["failed"].items():
        print_line(f"revision {revision} could not be measured: {why}")
    if record["pending"]:
        print_line(f"not measured yet: revisions {record['pending']}")
    print_line(f"who stands out: {record['suspect']['reason']}")


def _short(reading: dict[str, Any] | None) -> str | None:
    """Returns a reading with its 95 % interval, as it stands in a cell."""
    if reading is None:
        return None
    return f"{reading['value']:+.3f} ({reading['low']:+.3f}…{reading['high']:+.3f})"

"""`cambium witness`: keeps the log's last checkpoint where the server cannot reach it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cambium.cli.client import Client, connect
from cambium.cli.failures import BROKEN, NO, WRONG_CALL, CommandFailed
from cambium.cli.options import AsJson, InLane, Lane, State
from cambium.cli.output import print_json, print_line
from cambium.cli.record import built
from cambium.cli.succession import succession

if TYPE_CHECKING:
    from cambium.trust.audit import Checkpoint
    from cambium.trust.keys import PublicKey

DEFAULT = Path("cambium-witness.json")


def witness(
    root: Annotated[
        Path, typer.Option("--root", metavar="FILE", help="Where the last checkpoint is kept.")
    ] = DEFAULT,
    lane: InLane = Lane.LIFECYCLE,
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Check that the log still begins as when last seen, and keep its newest checkpoint.

    The first time there is nothing to compare with: the server's key is taken on trust and kept. A
    kill puts another key in its place, which is followed where the old one signed that. Each lane
    has a file of its own.
    """
    from cambium.trust.audit import Checkpoint, check_checkpoint
    from cambium.trust.keys import PublicKey

    kept = _read(root)
    with connect(state) as client:
        answer = client.get("/audit/checkpoint", lane=str(lane))
        now = built(Checkpoint, answer)
        public = PublicKey(raw=str(kept["public"] if kept else answer.get("public")))
        if kept is None:
            check_checkpoint(now, public, lane)
        else:
            before, kept_by = built(Checkpoint, kept), public
            for last, following in succession(client, public, now.key_id):
                if lane is Lane.LIFECYCLE:  # the lane that says so ended with it for a moment
                    _check_growth(client, lane, (before, kept_by), (last, public))
                    before, kept_by = last, public
                public = following
            _check_growth(client, lane, (before, kept_by), (now, public))
    _write(root, now, public.raw)
    since = kept["size"] if kept else None
    if as_json:
        print_json({"size": now.size, "root": now.root, "since": since, "public": public.raw})
    elif since is None:
        print_line(f"first seen: {now.size} entries, signed by {now.key_id}; kept in {root}")
    else:
        print_line(f"the log grew from {since} to {now.size} entries and forgot none")


def _check_growth(
    client: Client,
    lane: Lane,
    kept: tuple[Checkpoint, PublicKey],
    now: tuple[Checkpoint, PublicKey],
) -> None:
    from cambium.trust.audit import check_grown

    (before, kept_by), (after, signed_by) = kept, now
    asked = {"first": before.size, "second": after.size, "lane": str(lane)}
    steps = _steps(client.get("/audit/proof", **asked)) if before.size <= after.size else []
    check_grown(before, after, steps, kept_by, lane, since=signed_by)


def _steps(answer: dict[str, Any]) -> list[str]:
    proof = answer.get("proof")
    if not isinstance(proof, list) or not all(isinstance(step, str) for step in proof):
        raise CommandFailed("the server gave no proof: do not trust this log", status=NO)
    return proof


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        line = f"{path} cannot be read as a witness's file"
        raise CommandFailed(f"{line}: name the file it was kept in", status=WRONG_CALL) from error
    names = {"size", "root", "key_id", "signature", "public"}
    if not isinstance(found, dict) or found.keys() != names or type(found["size"]) is not int:
        line = f"{path} is no witness's file"
        raise CommandFailed(f"{line}: name the file it was kept in", status=WRONG_CALL)
    return found


def _write(path: Path, checkpoint: Checkpoint, public: str) -> None:
    """Replaces the file as a whole: what was kept before is there until the new one is."""
    text = json.dumps({**checkpoint.__dict__, "public": public}, indent=1) + "\n"
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        line = f"{path} cannot be written ({error.strerror})"
        raise CommandFailed(f"{line}: name a writable file", status=BROKEN) from error

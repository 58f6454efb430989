"""`cambium witness`: keeps the log's last checkpoint where the server cannot reach it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cambium.cli.client import connect
from cambium.cli.failures import BROKEN, NO, WRONG_CALL, CommandFailed
from cambium.cli.options import AsJson, InLane, Lane, State
from cambium.cli.output import print_json, print_line
from cambium.cli.record import built

if TYPE_CHECKING:
    from cambium.trust.audit import Checkpoint

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

    The first time there is nothing to compare with: the server's key is taken on trust and kept.
    Each lane has a file of its own.
    """
    from cambium.trust.audit import Checkpoint, check_checkpoint, check_grown
    from cambium.trust.keys import PublicKey

    kept = _read(root)
    with connect(state) as client:
        answer = client.get("/audit/checkpoint", lane=str(lane))
        now = built(Checkpoint, answer)
        public = PublicKey(raw=str(kept["public"] if kept else answer.get("public")))
        if kept is None:
            check_checkpoint(now, public, lane)
        else:
            before = built(Checkpoint, kept)
            if now.size < before.size:
                check_grown(before, now, (), public, lane)
            grown = client.get("/audit/proof", first=before.size, second=now.size, lane=str(lane))
            check_grown(before, now, _steps(grown), public, lane)
    _write(root, now, public.raw)
    since = kept["size"] if kept else None
    if as_json:
        print_json({"size": now.size, "root": now.root, "since": since, "public": public.raw})
    elif since is None:
        print_line(f"first seen: {now.size} entries, signed by {now.key_id}; kept in {root}")
    else:
        print_line(f"the log grew from {since} to {now.size} entries and forgot none")


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
